"""Which columns of a Parquet file hold the images and their ids: pure decisions about a schema."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.types as kinds

from runtime.errors import InputError

IMAGE_NAMES = ("image", "img", "tile", "patch", "image_bytes", "bytes", "jpg", "jpeg", "png", "content", "data")
PATH_NAMES = ("path", "image_path", "file_path", "filepath", "file_name", "filename", "file", "image", "img", "tile")
ID_NAMES = ("id", "tile_id", "image_id", "patch_id", "uuid", "key", "__key__")
# In the place of a column: rows are numbered.
NUMBERS = "none"

Form = Literal["bytes", "struct", "path"]


@dataclass(frozen=True)
class Columns:
    """What is read of a Parquet file.

    Attributes:
        image: The column of images.
        form: Bytes of an image file, the Hugging Face struct of bytes and path, or a path.
        id: The column of ids; `None` where rows are numbered.
    """

    image: str
    form: Form
    id: str | None

    @property
    def names(self) -> list[str]:
        """What to read."""
        return list(dict.fromkeys([self.image, *([self.id] if self.id else [])]))


def choose_columns(schema: pa.Schema, place: str, *, image: str | None = None, ids: str | None = None) -> Columns:
    """Return the columns that were asked for, else those that names and types point to.

    Raises:
        InputError: There is no such column, none that can hold images, several that could, or one of another type.
    """
    forms = {field.name: form for field in schema if (form := _form(field.type))}
    name = image if image is not None else _image_name(forms, schema, place)
    if name not in forms:
        raise InputError(
            f"The column {name!r} of {place} {_what(schema, name)}. Images are bytes, structs of bytes and path, or "
            f"paths as strings. Its columns: {_described(schema)}."
        )
    return Columns(name, forms[name], _id_name(schema, place, ids, besides=name))


def _image_name(forms: dict[str, Form], schema: pa.Schema, place: str) -> str:
    stored = [name for name, form in forms.items() if form != "path"]
    for wanted, among in ((IMAGE_NAMES, stored), (PATH_NAMES, [name for name in forms if name not in stored])):
        by_name = {name.lower(): name for name in reversed(among)}
        if found := next((by_name[name] for name in wanted if name in by_name), None):
            return found
        if among is stored and len(stored) == 1:
            return stored[0]
    raise InputError(
        f"Which column of {place} holds the images? Name it with image_column (--image-column). "
        f"Its columns: {_described(schema)}."
    )


def _id_name(schema: pa.Schema, place: str, asked: str | None, *, besides: str) -> str | None:
    if asked == NUMBERS:
        return None
    fitting = [field.name for field in schema if _is_id(field.type)]
    if asked is None:
        return _usual_id_name(schema, place, [name for name in fitting if name != besides], besides)
    if asked not in fitting:
        raise InputError(
            f"The column {asked!r} of {place} {_what(schema, asked)}. Ids are strings or integers; "
            f"id_column={NUMBERS!r} numbers the rows. Its columns: {_described(schema)}."
        )
    return asked


def _usual_id_name(schema: pa.Schema, place: str, fitting: list[str], besides: str) -> str | None:
    by_name = {name.lower(): name for name in reversed(fitting)}
    if found := next((by_name[name] for name in ID_NAMES if name in by_name), None):
        return found
    # Rows would be numbered though they have ids: integers become floating point where one was missing.
    alien = [name for name in schema.names if name.lower() in ID_NAMES and name != besides]
    if alien:
        raise InputError(
            f"The column {alien[0]!r} of {place} {_what(schema, alien[0])}. Ids are strings or integers: write it as "
            f"one, name another with id_column (--id-column), or number the rows with id_column={NUMBERS!r}. "
            f"Its columns: {_described(schema)}."
        )
    return None


def _form(kind: pa.DataType) -> Form | None:
    if _is_binary(kind):
        return "bytes"
    if kinds.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "struct" if index >= 0 and _is_binary(kind.field(index).type) else None
    return "path" if _is_string(kind) else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind))


def _is_string(kind: pa.DataType) -> bool:
    value = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_string(value) or kinds.is_large_string(value) or kinds.is_string_view(value))


def _is_id(kind: pa.DataType) -> bool:
    return bool(_is_string(kind) or kinds.is_integer(kind))


def _what(schema: pa.Schema, name: str) -> str:
    return f"is of type {schema.field(name).type}" if name in schema.names else "does not exist"


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
