"""Operators of which onnxruntime's CUDA provider has a kernel in 16 bits that keeps the digits 16 bits can keep."""

# They move values and compute nothing.
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
# They read of a value no more than its shape.
SHAPES = frozenset({"Shape", "Size"})

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "Div", "Erf", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "Mul", "Neg", "QuickGelu", "Relu"}
    | {"Sigmoid", "Sub", "Tanh", "Where"}
)
# Products, and what sums in float32 inside its kernel. Reductions, powers and roots (the parts of a norm that was not
# exported as one operator) are left out on purpose: their sums are rounded between the parts.
_PRODUCTS = frozenset(
    {"AveragePool", "BiasGelu", "Conv", "Gemm", "LayerNormalization", "MatMul", "MultiHeadAttention"}
    | {"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax"}
)
_FP16_ELEMENTWISE = frozenset({"Clip", "Elu", "LeakyRelu", "Max", "Min", "PRelu"})
_FP16_PRODUCTS = frozenset(
    {"BatchNormalization", "ConvTranspose", "DepthToSpace", "MaxPool", "Pad", "SpaceToDepth", "Tile"}
)

# Cheap operators: one between two that stay in float32 costs less there than the casts around it.
LIGHT = MOVES | _ELEMENTWISE | _FP16_ELEMENTWISE
# By precision. For bf16 read off the kernels that onnxruntime-gpu 1.31 has.
KERNELS = {
    "bf16": MOVES | _ELEMENTWISE | _PRODUCTS,
    "fp16": MOVES | _ELEMENTWISE | _PRODUCTS | _FP16_ELEMENTWISE | _FP16_PRODUCTS,
}
