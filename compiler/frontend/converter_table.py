"""List which converter handles which operator.

Written out by hand, one line per operator. What is not listed here goes to TVM's own ONNX
importer (`tvm_frontend.py`), which covers the long tail.
"""

from edgec.compiler.frontend.converters import (
    activations,
    arg_reduce,
    arithmetic,
    classical,
    indexing,
    matrices,
    microsoft,
    microsoft_quantized,
    pooling,
    quantization,
    quantized_elementwise,
    reduction,
    refused,
    resize,
    sampling,
    shapes,
    signal,
    trees,
)
from edgec.compiler.frontend.converters.attention import (
    convert_attention,
    convert_causal_conv_with_state,
    convert_linear_attention,
    convert_tensor_scatter,
)
from edgec.compiler.frontend.converters.control_flow import refuse_control_flow
from edgec.compiler.frontend.converters.convolution import convert_conv, convert_conv_transpose
from edgec.compiler.frontend.converters.dynamic_lstm import convert_dynamic_quantize_lstm
from edgec.compiler.frontend.converters.einsum import convert_einsum
from edgec.compiler.frontend.converters.elementwise import (
    convert_clip,
    convert_equal,
    convert_hard_sigmoid,
    convert_hard_swish,
    convert_identity,
    convert_sign,
    convert_variadic,
)
from edgec.compiler.frontend.converters.group_query import convert_group_query_attention
from edgec.compiler.frontend.converters.losses import (
    convert_negative_log_likelihood_loss,
    convert_softmax_cross_entropy_loss,
)
from edgec.compiler.frontend.converters.matmul import convert_matmul
from edgec.compiler.frontend.converters.normalization import (
    convert_batch_normalization,
    convert_group_normalization,
    convert_instance_normalization,
    convert_layer_normalization,
    convert_lrn,
    convert_mean_variance_normalization,
    convert_rms_normalization,
    convert_softmax,
)
from edgec.compiler.frontend.converters.recurrent import convert_gru, convert_lstm, convert_rnn
from edgec.compiler.frontend.converters.rotary import convert_rotary_embedding
from edgec.compiler.frontend.converters.types import (
    convert_bit_cast,
    convert_cast,
    convert_cast_like,
)
from edgec.compiler.frontend.node import Converter, Refusal, in_float32
from edgec.compiler.frontend.tvm_frontend import tvm_converter

CONVERTERS: dict[tuple[str, str], Converter] = {
    # attention
    ("", "Attention"): convert_attention,
    ("", "CausalConvWithState"): convert_causal_conv_with_state,
    ("", "LinearAttention"): convert_linear_attention,
    ("", "RotaryEmbedding"): convert_rotary_embedding,
    ("", "TensorScatter"): convert_tensor_scatter,
    # elementwise
    ("", "Clip"): convert_clip,
    ("", "Dropout"): convert_identity,
    ("", "Equal"): convert_equal,
    ("", "HardSigmoid"): convert_hard_sigmoid,
    ("", "HardSwish"): convert_hard_swish,
    ("", "Identity"): convert_identity,
    ("", "Max"): convert_variadic,
    ("", "Mean"): convert_variadic,
    ("", "Min"): convert_variadic,
    ("", "Sign"): convert_sign,
    ("", "Sum"): convert_variadic,
    # activations
    ("", "Celu"): activations.convert_celu,
    ("", "Elu"): activations.convert_elu,
    ("", "Mish"): activations.convert_mish,
    ("", "Selu"): activations.convert_selu,
    ("", "ThresholdedRelu"): activations.convert_thresholded_relu,
    # arithmetic
    ("", "BitShift"): arithmetic.convert_bit_shift,
    ("", "Div"): arithmetic.convert_div,
    ("", "IsInf"): arithmetic.convert_is_inf,
    ("", "Mod"): arithmetic.convert_mod,
    ("", "Pow"): arithmetic.convert_pow,
    # pooling
    ("", "AveragePool"): pooling.convert_average_pool,
    ("", "GlobalLpPool"): pooling.convert_global_lp_pool,
    ("", "LpNormalization"): pooling.convert_lp_normalization,
    ("", "LpPool"): pooling.convert_lp_pool,
    ("", "MaxPool"): pooling.convert_max_pool,
    ("", "MaxUnpool"): pooling.convert_max_unpool,
    # reduction
    ("", "ArgMax"): arg_reduce.convert_arg_reduce,
    ("", "ArgMin"): arg_reduce.convert_arg_reduce,
    ("", "Hardmax"): arg_reduce.convert_hardmax,
    ("", "ReduceL1"): reduction.convert_reduce,
    ("", "ReduceL2"): reduction.convert_reduce,
    ("", "ReduceLogSum"): reduction.convert_reduce,
    ("", "ReduceLogSumExp"): reduction.convert_reduce,
    ("", "ReduceMax"): reduction.convert_reduce,
    ("", "ReduceMean"): reduction.convert_reduce,
    ("", "ReduceMin"): reduction.convert_reduce,
    ("", "ReduceProd"): reduction.convert_reduce,
    ("", "ReduceSum"): reduction.convert_reduce,
    ("", "ReduceSumSquare"): reduction.convert_reduce,
    # refused
    ("", "ImageDecoder"): refused.refuse_image_decoder,
    ("", "Multinomial"): refused.refuse_random,
    ("", "RandomNormal"): refused.refuse_random,
    ("", "RandomNormalLike"): refused.refuse_random,
    ("", "RandomUniform"): refused.refuse_random,
    ("", "RandomUniformLike"): refused.refuse_random,
    ("", "RegexFullMatch"): refused.refuse_text,
    ("", "StringConcat"): refused.refuse_text,
    ("", "StringNormalizer"): refused.refuse_text,
    ("", "StringSplit"): refused.refuse_text,
    ("", "TfIdfVectorizer"): refused.refuse_text,
    # resize
    ("", "Resize"): resize.convert_resize,
    ("", "Upsample"): resize.convert_upsample,
    # sampling
    ("", "Col2Im"): sampling.convert_col2im,
    ("", "DeformConv"): sampling.convert_deform_conv,
    ("", "Det"): sampling.convert_det,
    ("", "GridSample"): sampling.convert_grid_sample,
    ("", "NonMaxSuppression"): sampling.convert_non_max_suppression,
    ("", "RoiAlign"): sampling.convert_roi_align,
    # shapes
    ("", "CenterCropPad"): shapes.convert_center_crop_pad,
    ("", "Constant"): shapes.convert_constant,
    ("", "ConstantOfShape"): shapes.convert_constant_of_shape,
    ("", "DepthToSpace"): shapes.convert_depth_to_space,
    ("", "Expand"): shapes.convert_expand,
    ("", "EyeLike"): shapes.convert_eye_like,
    ("", "Flatten"): shapes.convert_flatten,
    ("", "Pad"): shapes.convert_pad,
    ("", "Range"): shapes.convert_range,
    ("", "Reshape"): shapes.convert_reshape,
    ("", "OptionalHasElement"): shapes.convert_optional_has_element,
    ("", "Shape"): shapes.convert_shape,
    ("", "Size"): shapes.convert_size,
    ("", "Slice"): shapes.convert_slice,
    ("", "SpaceToDepth"): shapes.convert_space_to_depth,
    ("", "Split"): shapes.convert_split,
    ("", "Squeeze"): shapes.convert_squeeze,
    ("", "Tile"): shapes.convert_tile,
    ("", "Unsqueeze"): shapes.convert_unsqueeze,
    # control flow
    ("", "If"): refuse_control_flow,
    ("", "Loop"): refuse_control_flow,
    ("", "Scan"): refuse_control_flow,
    # signal
    ("", "DFT"): signal.convert_dft,
    ("", "MelWeightMatrix"): signal.convert_mel_weight_matrix,
    ("", "STFT"): signal.convert_stft,
    # convolution
    ("", "Conv"): convert_conv,
    ("", "ConvTranspose"): convert_conv_transpose,
    # losses
    ("", "NegativeLogLikelihoodLoss"): convert_negative_log_likelihood_loss,
    ("", "SoftmaxCrossEntropyLoss"): convert_softmax_cross_entropy_loss,
    # indexing
    ("", "Compress"): indexing.convert_compress,
    ("", "CumProd"): indexing.convert_cumulative,
    ("", "CumSum"): indexing.convert_cumulative,
    ("", "Gather"): indexing.convert_gather,
    ("", "GatherElements"): indexing.convert_gather_elements,
    ("", "GatherND"): indexing.convert_gather_nd,
    ("", "NonZero"): indexing.convert_non_zero,
    ("", "OneHot"): indexing.convert_one_hot,
    ("", "ReverseSequence"): indexing.convert_reverse_sequence,
    ("", "Scatter"): indexing.convert_scatter_elements,
    ("", "ScatterElements"): indexing.convert_scatter_elements,
    ("", "ScatterND"): indexing.convert_scatter_nd,
    ("", "TopK"): indexing.convert_top_k,
    # matrix products
    ("", "Einsum"): convert_einsum,
    ("", "MatMul"): convert_matmul,
    # normalization
    ("", "BatchNormalization"): convert_batch_normalization,
    ("", "GroupNormalization"): convert_group_normalization,
    ("", "InstanceNormalization"): convert_instance_normalization,
    ("", "LRN"): convert_lrn,
    ("", "LayerNormalization"): convert_layer_normalization,
    ("", "LogSoftmax"): convert_softmax,
    ("", "MeanVarianceNormalization"): convert_mean_variance_normalization,
    ("", "RMSNormalization"): convert_rms_normalization,
    ("", "Softmax"): convert_softmax,
    # quantization
    ("", "ConvInteger"): quantization.convert_conv_integer,
    ("", "DequantizeLinear"): quantization.convert_dequantize_linear,
    ("", "DynamicQuantizeLinear"): quantization.convert_dynamic_quantize_linear,
    ("", "MatMulInteger"): quantization.convert_matmul_integer,
    ("", "QLinearConv"): quantization.convert_qlinear_conv,
    ("", "QLinearMatMul"): quantization.convert_qlinear_matmul,
    ("", "QuantizeLinear"): quantization.convert_quantize_linear,
    ("com.microsoft", "DequantizeLinear"): quantization.convert_dequantize_linear,
    ("com.microsoft", "DynamicQuantizeMatMul"): quantization.convert_dynamic_quantize_matmul,
    ("com.microsoft", "MatMulIntegerToFloat"): quantization.convert_matmul_integer_to_float,
    ("com.microsoft", "QGemm"): quantization.convert_qgemm,
    ("com.microsoft", "QLinearAdd"): quantized_elementwise.convert_qlinear_add,
    ("com.microsoft", "QLinearAveragePool"): quantized_elementwise.convert_qlinear_average_pool,
    ("com.microsoft", "QLinearConcat"): quantized_elementwise.convert_qlinear_concat,
    ("com.microsoft", "QLinearConv"): quantization.convert_qlinear_conv,
    (
        "com.microsoft",
        "QLinearGlobalAveragePool",
    ): quantized_elementwise.convert_qlinear_global_pool,
    ("com.microsoft", "QLinearLeakyRelu"): quantized_elementwise.convert_qlinear_leaky_relu,
    ("com.microsoft", "QLinearMul"): quantized_elementwise.convert_qlinear_mul,
    ("com.microsoft", "QLinearSigmoid"): quantized_elementwise.convert_qlinear_sigmoid,
    ("com.microsoft", "QLinearSoftmax"): quantized_elementwise.convert_qlinear_softmax,
    ("com.microsoft", "QuantizeLinear"): quantization.convert_quantize_linear,
    # recurrent
    ("", "GRU"): convert_gru,
    ("", "LSTM"): convert_lstm,
    ("", "RNN"): convert_rnn,
    # element types
    ("", "BitCast"): convert_bit_cast,
    ("", "Cast"): convert_cast,
    ("", "CastLike"): convert_cast_like,
    # classical machine learning
    ("ai.onnx.ml", "ArrayFeatureExtractor"): classical.convert_array_feature_extractor,
    ("ai.onnx.ml", "Binarizer"): classical.convert_binarizer,
    ("ai.onnx.ml", "FeatureVectorizer"): classical.convert_feature_vectorizer,
    ("ai.onnx.ml", "Imputer"): classical.convert_imputer,
    ("ai.onnx.ml", "LabelEncoder"): classical.convert_label_encoder,
    ("ai.onnx.ml", "LinearClassifier"): classical.convert_linear_classifier,
    ("ai.onnx.ml", "LinearRegressor"): classical.convert_linear_regressor,
    ("ai.onnx.ml", "Normalizer"): classical.convert_normalizer,
    ("ai.onnx.ml", "OneHotEncoder"): classical.convert_one_hot_encoder,
    ("ai.onnx.ml", "SVMRegressor"): classical.convert_svm_regressor,
    ("ai.onnx.ml", "Scaler"): classical.convert_scaler,
    ("ai.onnx.ml", "TreeEnsemble"): trees.convert_tree_ensemble,
    ("ai.onnx.ml", "TreeEnsembleClassifier"): trees.convert_tree_ensemble_classifier,
    ("ai.onnx.ml", "TreeEnsembleRegressor"): trees.convert_tree_ensemble_regressor,
    ("ai.onnx.ml", "ZipMap"): classical.refuse_zip_map,
    # com.microsoft
    ("", "SimplifiedLayerNormalization"): microsoft.convert_simplified_layer_normalization,
    ("com.microsoft", "Attention"): microsoft.convert_attention,
    ("com.microsoft", "BiasGelu"): microsoft.convert_gelu,
    ("com.microsoft", "EmbedLayerNormalization"): microsoft.convert_embed_layer_normalization,
    ("com.microsoft", "FastGelu"): microsoft.convert_fast_gelu,
    ("com.microsoft", "DynamicQuantizeLSTM"): convert_dynamic_quantize_lstm,
    ("com.microsoft", "GatherBlockQuantized"): microsoft_quantized.convert_gather_block_quantized,
    ("com.microsoft", "Inverse"): matrices.convert_inverse,
    ("com.microsoft", "NhwcMaxPool"): pooling.convert_nhwc_max_pool,
    ("com.microsoft", "QAttention"): microsoft_quantized.convert_qattention,
    ("com.microsoft", "Trilu"): matrices.convert_trilu,
    ("com.microsoft", "FusedConv"): microsoft.convert_fused_conv,
    ("com.microsoft", "FusedGemm"): microsoft.convert_fused_gemm,
    ("com.microsoft", "FusedMatMul"): microsoft.convert_fused_matmul,
    ("com.microsoft", "Gelu"): microsoft.convert_gelu,
    ("com.microsoft", "GroupQueryAttention"): convert_group_query_attention,
    ("com.microsoft", "MatMulNBits"): microsoft.convert_matmul_nbits,
    ("com.microsoft", "MultiHeadAttention"): microsoft.convert_multi_head_attention,
    ("com.microsoft", "QuickGelu"): microsoft.convert_quick_gelu,
    ("com.microsoft", "RotaryEmbedding"): microsoft.convert_rotary_embedding,
    (
        "com.microsoft",
        "SimplifiedLayerNormalization",
    ): microsoft.convert_simplified_layer_normalization,
    ("com.microsoft", "SkipLayerNormalization"): microsoft.convert_skip_layer_normalization,
    (
        "com.microsoft",
        "SkipSimplifiedLayerNormalization",
    ): microsoft.convert_skip_simplified_layer_normalization,
}

# Computed in float32 where the model has 16-bit floats: some of their steps exist in wider floats
# only, others would round too often.
NOT_IN_HALF = frozenset(
    {
        ("", name)
        for name in (
            "ArgMax",
            "ArgMin",
            "AveragePool",
            "Celu",
            "Conv",
            "ConvTranspose",
            "Einsum",
            "Hardmax",
            "IsNaN",
            "Pow",
            "RoiAlign",
            "Selu",
        )
    }
)

# Written out as ONNX defines them before the import, although TVM has a converter.
EXPANDED: frozenset[tuple[str, str]] = frozenset()


def find_converter(domain: str, op_type: str) -> Converter:
    """Return the converter of an operator.

    Raises:
        Refusal: neither edgec nor TVM knows the operator.
    """
    converter = CONVERTERS.get((domain, op_type)) or tvm_converter(domain, op_type)
    if converter is None:
        raise Refusal("the operator is not supported")
    return in_float32(converter) if (domain, op_type) in NOT_IN_HALF else converter


def is_known(domain: str, op_type: str) -> bool:
    """Return whether an operator has a converter."""
    try:
        find_converter("" if domain == "ai.onnx" else domain, op_type)
    except Refusal:
        return False
    return True
