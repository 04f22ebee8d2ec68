"""Kind, and the two tables that give every torch module and function its kind: the only file that lists them."""

from __future__ import annotations

from enum import Enum

from torch import nn


class Kind(Enum):
    """What a layer does to its input, as the papers name it; the value is its letter in a graph's picture.

    >>> Kind.DROPOUT.value, Kind("W").name
    ('D', 'WEIGHT')
    """

    WEIGHT = "W"
    NORM = "N"
    ACTIVATION = "A"
    DROPOUT = "D"
    POOL = "P"
    JOIN = "+"
    CONCAT = "c"
    GATE = "x"
    PASS = "."
    NOISE = "~"
    OPAQUE = "?"
    INPUT = "i"
    OUTPUT = "o"


# Module types whose one call of that kind is theirs, even where they carry children (timm's norm-act pairs).
_MODULES: dict[Kind, tuple[type[nn.Module], ...]] = {
    Kind.WEIGHT: (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag),
    Kind.NORM: (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
    Kind.DROPOUT: (nn.modules.dropout._DropoutNd,),
}
_LISTED = tuple(module for modules in _MODULES.values() for module in modules)

# Function names as torch spells them, without the in-place underscore or the dunders: "add" is +, +=, torch.add ...
_FUNCTIONS: dict[Kind, str] = {
    Kind.WEIGHT: """
        linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d conv_tbc
        convolution embedding embedding_bag""",
    Kind.NORM: """
        batch_norm instance_norm layer_norm group_norm rms_norm sync_batch_norm
        native_batch_norm""",
    Kind.ACTIVATION: """
        relu relu6 elu selu celu gelu silu mish softplus sigmoid tanh hardtanh hardswish hardsigmoid hardshrink
        leaky_relu prelu rrelu logsigmoid log_sigmoid softsign softshrink tanhshrink threshold glu softmax log_softmax
        softmin exp expm1 log log1p sqrt rsqrt square abs neg reciprocal erf sin cos clamp clamp_min clamp_max clip
        pow float_power sinc atan""",
    Kind.DROPOUT: """
        dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout""",
    Kind.POOL: """
        max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
        avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d fractional_max_pool2d fractional_max_pool3d
        fractional_max_pool2d_with_indices fractional_max_pool3d_with_indices
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices adaptive_max_pool3d_with_indices
        mean sum max min amax amin scatter_add scatter_reduce index_add maximum minimum fmax fmin
        std var logsumexp norm linalg_vector_norm prod median cumsum topk sort
        interpolate upsample upsample_bilinear upsample_nearest""",
    Kind.JOIN: "add sub subtract rsub iadd isub radd",
    Kind.CONCAT: "cat concat concatenate stack hstack vstack dstack column_stack setitem scatter index_put index_copy",
    Kind.GATE: "mul multiply div divide true_divide truediv rmul rdiv rtruediv imul itruediv weight_norm",
    Kind.PASS: """
        view view_as reshape reshape_as flatten unflatten ravel permute transpose t T mT H mH adjoint movedim moveaxis
        swapaxes swapdims squeeze unsqueeze expand expand_as broadcast_to broadcast_tensors
        repeat tile repeat_interleave contiguous clone
        detach data to type type_as float double half bfloat16 cpu cuda requires_grad alias real chunk split
        split_with_sizes unsafe_chunk unsafe_split tensor_split unbind narrow select index_select getitem take_along_dim
        gather roll flip pad constant_pad_nd channel_shuffle pixel_shuffle pixel_unshuffle unfold fold as_strided
        rot90 identity nan_to_num copy positive masked_select meshgrid diagonal pack_padded_sequence
        pad_packed_sequence fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
        fused_moving_avg_obs_fake_quant""",
}
_KIND_OF_FUNCTION = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}

# Products of two tensors: a weight layer if one of them is a parameter, a gate if both are signals.
PRODUCTS = frozenset(
    "matmul mm mv bmm addmm addmv baddbmm einsum tensordot rmatmul imatmul sparse_mm spmm sparse_addmm".split()
)
# Weight layers: convolutions, those among them that are transposed, and lookups in a table.
CONVOLUTIONS = frozenset(name for name in _FUNCTIONS[Kind.WEIGHT].split() if name.startswith("conv"))
TRANSPOSED = frozenset(name for name in CONVOLUTIONS if "transpose" in name)
EMBEDDINGS = frozenset("embedding embedding_bag".split())
# Norms whose statistics are those of a batch.
BATCH_NORMS = frozenset("batch_norm sync_batch_norm native_batch_norm".split())
# Activations that mix the elements of a dimension.
SOFTMAXES = frozenset("softmax log_softmax softmin".split())
# Pools, their names without "_with_indices": the largest or smallest value, the mean, resized maps, whole dimensions.
_POOLS = frozenset(name.removesuffix("_with_indices") for name in _FUNCTIONS[Kind.POOL].split())
MAXIMA = frozenset(name for name in _POOLS if "max" in name) - {"maximum", "fmax"}
MINIMA = frozenset("min amin".split())
AVERAGES = frozenset(name for name in _POOLS if "avg" in name) | {"mean"}
REDUCTIONS = frozenset("mean sum max min amax amin".split())  # over dimensions, not windows
RESIZES = frozenset(name for name in _POOLS if name.startswith(("interpolate", "upsample")))
# Pools over windows, by how many dimensions these have, and those whose windows follow from the size asked for.
WINDOWED_POOLS = {f"{which}_pool{n}d": n for which in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)}
ADAPTIVE_POOLS = frozenset(name for name in WINDOWED_POOLS if name.startswith("adaptive"))
# Pools that sum where indices say, of several signals, or by other means than sums and extremes.
UNPREDICTED_POOLS = frozenset(
    "scatter_add scatter_reduce index_add lp_pool1d lp_pool2d lp_pool3d maximum minimum fmax fmin std var logsumexp "
    "norm linalg_vector_norm prod median cumsum topk sort".split()
)
# Rearrangements after which samples do not lie one after the other.
REORDERINGS = frozenset("pack_padded_sequence pad_packed_sequence".split())
# Rearrangements that change the order of dimensions.
TRANSPOSES = frozenset("permute transpose t T mT H mH adjoint movedim moveaxis swapaxes swapdims".split())
# Rearrangements that round, to the steps of a quantized signal.
QUANTIZING = frozenset(name for name in _FUNCTIONS[Kind.PASS].split() if "fake_quant" in name)
# Joins that subtract, gates that divide, and those of both that take their operands in reverse.
SUBTRACTIONS = frozenset("sub subtract rsub isub".split())
DIVISIONS = frozenset("div divide true_divide truediv rdiv rtruediv itruediv".split())
REVERSED = frozenset("rsub rdiv rtruediv".split())
# Rearrangements that return parts of a tensor.
PARTS = frozenset("chunk split split_with_sizes unsafe_chunk unsafe_split tensor_split narrow getitem unbind".split())
# Concatenations along a dimension that is there, and rearrangements that add elements at the borders.
CONCATENATIONS = frozenset("cat concat concatenate".split())
PADDINGS = frozenset("pad constant_pad_nd".split())
# Functions that are affine in one signal; of two signals they are OPAQUE.
AFFINE = frozenset("addcmul addcdiv lerp where masked_fill".split())
# Functions with a dropout inside, and the position of its probability among their arguments (one further of packed
# sequences).
HIDDEN_DROPOUT = {
    "scaled_dot_product_attention": 4,
    "multi_head_attention_forward": 10,
    "lstm": 5,
    "gru": 5,
    "rnn_tanh": 5,
    "rnn_relu": 5,
}
RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())
# Functions of no kind that make no noise of their own, if they hold no dropout: what they do to a signal is seen by
# running them.
NOISELESS = (
    frozenset(AFFINE)
    | frozenset(HIDDEN_DROPOUT)
    | frozenset(
        """
    gt ge lt le eq ne greater greater_equal less less_equal not_equal logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_not and or xor invert rand ror sign floor ceil round trunc frac remainder fmod mod
    floor_divide floordiv pow float_power rpow atan2 hypot logaddexp xlogy cumprod one_hot bincount unique nonzero
    searchsorted bucketize cdist tril triu outer local_response_norm max_unpool1d max_unpool2d max_unpool3d imag angle
    view_as_real view_as_complex complex polar fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2
    fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn stft istft grid_sampler grid_sample affine_grid
    affine_grid_generator cross cosine_similarity lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell""".split()
    )
)
# Dropouts that drop all positions of a channel at once, those that keep SELU's moments, and those that multiply by
# noise of mean 1.
CHANNEL_DROPOUT = frozenset("dropout1d dropout2d dropout3d feature_dropout feature_alpha_dropout".split())
ALPHA_DROPOUT = frozenset("alpha_dropout feature_alpha_dropout".split())
MULTIPLYING_DROPOUT = frozenset("dropout dropout1d dropout2d dropout3d feature_dropout native_dropout".split())
# Functions that read the signal in their first argument and only the shape or dtype of the second.
LIKE_SECOND = frozenset("view_as reshape_as expand_as type_as".split())
# Functions whose result is random: normal and uniform ones, with whether they take parameters of their law, masks of
# zeros and ones, and others. A product with such a tensor is dropout by another name, unless its mean is 0.
NORMAL = {"randn": False, "randn_like": False, "normal": True}
UNIFORM = {"rand": False, "rand_like": False, "uniform": True}
MASKS = frozenset({"bernoulli"})
INTEGERS = frozenset({"randint", "randint_like"})
RANDOM = frozenset("random exponential poisson cauchy log_normal geometric".split()).union(
    NORMAL, UNIFORM, MASKS, INTEGERS
)
# Those that, given a signal and not told to overwrite it, draw from the law that it describes.
SAMPLES = frozenset("normal bernoulli poisson multinomial binomial gumbel_softmax".split())
# Functions that fill a tensor with one value: which, or the position of the argument that says which.
FILLED = {
    **dict.fromkeys("ones ones_like new_ones".split(), 1.0),
    **dict.fromkeys("zeros zeros_like new_zeros zero".split(), 0.0),
}
FILLED_BY = {"full": 1, "full_like": 1, "new_full": 2, "fill": 1}
# Comparisons that make masks, and what else is done to these.
LESS = frozenset("lt le less less_equal".split())
GREATER = frozenset("gt ge greater greater_equal".split())
INVERSIONS = frozenset("invert logical_not bitwise_not".split())
NEGATIONS = frozenset("neg negative".split())
ROUNDED_DOWN = frozenset({"floor"})
# Functions that put something else in a signal's place where a mask says so, and the mask's position.
REPLACING = {"where": 0, "masked_fill": 1, "setitem": 1}
# Functions that add a term, scaled, to a signal.
ADDING = frozenset("addcmul addcdiv lerp".split())
# Functions that take data out of torch, where no call is seen, and those that bring data in: it may be that signal.
LEAVING = frozenset("numpy tolist item array float int bool index complex dlpack".split())
# Functions of tensors whose values say what is returned, or of which shape.
BY_VALUES = frozenset(
    "equal allclose is_nonzero nonzero argwhere masked_select unique unique_consecutive bincount repeat_interleave "
    "pack_padded_sequence pad_packed_sequence".split()
)
UNKNOWN = "unknown"  # the function of a layer that stands for what was done to signals outside of torch
ENTERING = frozenset("from_numpy tensor as_tensor asarray frombuffer from_dlpack scalar_tensor".split())
# Functions that take only shape, dtype or device from a tensor: what they return carries no signal.
SHAPE_ONLY = frozenset(
    "empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full new_tensor zero fill "
    "new zeros ones full empty arange eye argmax argmin argsort isnan isinf isfinite size shape".split()
)

_CONV = "input weight bias stride padding dilation groups"
_CONV_TRANSPOSE = "input weight bias stride padding output_padding groups dilation"
_BATCH_NORM = "input running_mean running_var weight bias training momentum eps"
_MAX_POOL = "input kernel_size stride padding dilation ceil_mode return_indices"
# Names of the arguments of the functions that propagation looks into, in torch's order.
ARGUMENTS = {
    name: tuple(names.split())
    for names, functions in {
        "input weight bias": "linear",
        "input1 input2 weight bias": "bilinear",
        _CONV: "conv1d conv2d conv3d",
        _CONV_TRANSPOSE: "conv_transpose1d conv_transpose2d conv_transpose3d",
        "input weight bias stride padding dilation transposed output_padding groups": "convolution",
        "input weight padding_idx": "embedding",
        "input weight offsets max_norm norm_type scale_grad_by_freq mode": "embedding_bag",
        "input other": "matmul rmatmul imatmul",
        "input mat2": "mm bmm spmm",
        "sparse dense": "sparse_mm",
        "mat mat1 mat2": "sparse_addmm",
        "input vec": "mv",
        "input mat1 mat2": "addmm",
        "input mat vec": "addmv",
        "input batch1 batch2": "baddbmm",
        "a b dims": "tensordot",
        "input weight bias pad": "conv_tbc",
        _BATCH_NORM: "batch_norm",
        "input weight bias running_mean running_var training momentum eps": "native_batch_norm sync_batch_norm",
        "input running_mean running_var weight bias use_input_stats momentum eps": "instance_norm",
        "input normalized_shape weight bias eps": "layer_norm",
        "input num_groups weight bias eps": "group_norm",
        "input normalized_shape weight eps": "rms_norm",
        _MAX_POOL: """max_pool1d max_pool2d max_pool3d
            max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices""",
        "input kernel_size stride padding ceil_mode count_include_pad": "avg_pool1d avg_pool2d avg_pool3d",
        "input p training inplace": """dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
            feature_alpha_dropout native_dropout""",
    }.items()
    for name in functions.split()
}


def function_name(function: object) -> str:
    """Name of a torch function without in-place underscore or dunders, so that all spellings of an op agree.

    >>> import torch
    >>> function_name(torch.Tensor.__iadd__), function_name(torch.relu_), function_name(torch.Tensor.T.__get__)
    ('iadd', 'relu', 'T')
    """
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":  # a property such as Tensor.T: the getter is bound to the descriptor that has the name
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name.partition(".")[0].strip("_")  # an overload, such as of an exported graph, has its name behind a dot


def kind_of_function(name: str) -> Kind:
    """Kind of a function by the name that `function_name` gives; OPAQUE if no table knows it.

    >>> kind_of_function("conv2d"), kind_of_function("stft")
    (<Kind.WEIGHT: 'W'>, <Kind.OPAQUE: '?'>)
    """
    return _KIND_OF_FUNCTION.get(name, Kind.OPAQUE)


def hidden_rate(name: str, args: tuple[object, ...]) -> int | None:
    """The position of the rate of the dropout inside a call, among its arguments; None if it is not among them.

    >>> hidden_rate("lstm", (None, None, None, True, 2, 0.5, True)), hidden_rate("gru", (None,) * 3 + (True, 1, 0.5))
    (5, None)
    """
    place = HIDDEN_DROPOUT[name]
    if name in RECURRENT:  # of packed sequences, one further; of a single layer's output, nothing is dropped
        place = next((i for i, value in enumerate(args) if isinstance(value, float)), len(args))
        if place and place < len(args) and args[place - 1] == 1:
            return None
    return place if place < len(args) else None


def is_own_call(module: nn.Module, kind: Kind) -> bool:
    """Whether a call of that kind in a module's forward is the module's own work, not that of a container.

    >>> is_own_call(nn.Dropout(), Kind.DROPOUT), is_own_call(nn.Sequential(nn.ReLU()), Kind.DROPOUT)
    (True, False)
    """
    if kind in _MODULES:
        return isinstance(module, _MODULES[kind])
    hooked = {*module._forward_pre_hooks, *module._forward_hooks}  # attachments are children that run by hooks
    if isinstance(module, _LISTED) or not hooked.issuperset(module._modules):  # type: ignore[arg-type]
        return False
    return any(base.__module__.startswith("torch.nn.modules.") for base in type(module).__mro__[:-2])
