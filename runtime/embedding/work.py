"""A task, or a share of one, carried out by one session: on this machine, or by a worker of a cluster."""

from collections.abc import Callable
from contextlib import closing

from runtime.backbone import Backbone
from runtime.embedding.batch import Rows
from runtime.embedding.engine import Pace, embed_ranges
from runtime.embedding.opening import Task
from runtime.embedding.output import Writer
from runtime.embedding.sources import Source


def carry_out(backbone: Backbone, source: Source, task: Task, pace: Pace, seen: Callable[[Rows], bool]) -> None:
    """Embed the task's ranges and publish their parts.

    The folder is held meanwhile by whoever opened the task. Several workers may carry out shares of one task at once,
    `replace(task, ranges=...)` with ranges that `parts.split` cut at multiples of its `part_tiles`; a share that is
    carried out twice publishes the same parts twice.

    Args:
        backbone: What embeds.
        source: Where the tiles are.
        task: What is to be done; see `opening.opened`.
        pace: How much at once, with the batch size that the task was opened with.
        seen: Told of each batch. Where it answers that this was enough, what is done is published, and no more.

    Raises:
        InputError, DeviceError: As `embed_ranges`; what was done before is published.
        OutputError: The folder cannot be written.
    """
    batches = embed_ranges(backbone, source, task.ranges, pace)
    with closing(batches), Writer(task.output, task.part_tiles) as writer:
        for rows in batches:
            writer.add(rows)
            if seen(rows):
                break
