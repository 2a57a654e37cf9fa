"""The operations that a stored program may call: an exact list of functional ATen overloads, and a few on sizes.

The list is the wall between a file and the machine. An operation stands here only if its schema mutates nothing, draws
nothing and touches no file, process or foreign code; low-level forms that trust their caller with raw strides or sizes
are left out. Where an overload can draw random numbers or update running statistics, `SWITCHED_OFF` says which
arguments keep it from doing so. Names are looked up in this list and never evaluated; there is no place in it for
namespaces of users.

To add an operation, add its overload to its family: tests/test_operators.py holds the list to the rules above.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mcdrop.graph import draws

__all__ = ["FACTORIES", "FAMILIES", "FUNCTIONS", "OPERATORS", "SWITCHED_OFF", "ZEROED", "function_of", "name_of"]

FAMILIES: Mapping[str, str] = {
    "sizes": """
        scalar_tensor.default sym_numel.default sym_size.default sym_size.int sym_storage_offset.default sym_stride.int
    """,
    "new tensors": """
        arange.default arange.start arange.start_step bartlett_window.default bartlett_window.periodic
        blackman_window.default blackman_window.periodic empty.memory_format empty_like.default eye.default eye.m
        fill.Scalar fill.Tensor full.default full_like.default hamming_window.default hamming_window.periodic
        hamming_window.periodic_alpha hamming_window.periodic_alpha_beta hann_window.default hann_window.periodic
        kaiser_window.beta kaiser_window.default kaiser_window.periodic linspace.Scalar_Tensor linspace.Tensor_Scalar
        linspace.Tensor_Tensor linspace.default logspace.Scalar_Tensor logspace.Tensor_Scalar logspace.Tensor_Tensor
        logspace.default new_empty.default new_full.default new_ones.default new_zeros.default one_hot.default
        ones.default ones_like.default range.default range.step tril_indices.default triu_indices.default zero.default
        zeros.default zeros_like.default
    """,
    "copies and casts": """
        alias.default alias_copy.default _cast_Byte.default _cast_Char.default _cast_Double.default _cast_Float.default
        _cast_Half.default _cast_Int.default _cast_Long.default _cast_Short.default chalf.default clone.default
        complex.default _conj.default conj.default _conj_copy.default _conj_physical.default conj_physical.default
        contiguous.default copy.default detach.default detach_copy.default imag.default lift.default lift_fresh.default
        lift_fresh_copy.default _neg_view.default polar.default positive.default real.default resolve_conj.default
        resolve_neg.default to.device to.dtype to.dtype_layout to.other _to_copy.default type_as.default
        view_as_complex.default view_as_complex_copy.default view_as_real.default view_as_real_copy.default
    """,
    "arithmetic": """
        abs.default absolute.default add.Scalar add.Tensor addcdiv.default addcmul.default clamp.Tensor clamp.default
        clamp_max.Tensor clamp_max.default clamp_min.Tensor clamp_min.default clip.Tensor clip.default copysign.Scalar
        copysign.Tensor cross.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode divide.Scalar
        divide.Scalar_mode divide.Tensor divide.Tensor_mode float_power.Scalar float_power.Tensor_Scalar
        float_power.Tensor_Tensor floor_divide.Scalar floor_divide.default fmax.default fmin.default fmod.Scalar
        fmod.Tensor frexp.Tensor gcd.default hypot.default lcm.default ldexp.Tensor lerp.Scalar lerp.Tensor
        linalg_cross.default maximum.default minimum.default mul.Scalar mul.Tensor multiply.Scalar multiply.Tensor
        nan_to_num.default neg.default negative.default nextafter.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor
        reciprocal.default remainder.Scalar remainder.Scalar_Tensor remainder.Tensor rsqrt.default rsub.Scalar
        rsub.Tensor sgn.default sign.default signbit.default sqrt.default square.default sub.Scalar sub.Tensor
        subtract.Scalar subtract.Tensor true_divide.Scalar true_divide.Tensor
    """,
    "exponentials and logarithms": """
        digamma.default erf.default erfc.default erfinv.default exp.default exp2.default expm1.default i0.default
        igamma.default igammac.default lgamma.default log.default log10.default log1p.default log2.default
        logaddexp.default logaddexp2.default logit.default mvlgamma.default polygamma.default sinc.default
        xlogy.Scalar_Other xlogy.Scalar_Self xlogy.Tensor
    """,
    "rounding": """
        ceil.default fix.default floor.default frac.default round.decimals round.default trunc.default
    """,
    "trigonometry": """
        acos.default acosh.default angle.default arccos.default arccosh.default arcsin.default arcsinh.default
        arctan.default arctan2.default arctanh.default asin.default asinh.default atan.default atan2.default
        atanh.default cos.default cosh.default deg2rad.default rad2deg.default sin.default sinh.default tan.default
        tanh.default
    """,
    "special": """
        special_bessel_j0.default special_bessel_j1.default special_digamma.default special_entr.default
        special_erf.default special_erfc.default special_erfcx.default special_erfinv.default special_exp2.default
        special_expit.default special_expm1.default special_gammainc.default special_gammaincc.default
        special_gammaln.default special_i0.default special_i0e.default special_i1.default special_i1e.default
        special_log1p.default special_log_ndtr.default special_log_softmax.default special_logit.default
        special_logsumexp.default special_multigammaln.default special_ndtr.default special_ndtri.default
        special_polygamma.default special_psi.default special_round.default special_sinc.default special_softmax.default
        special_xlog1py.default special_xlog1py.other_scalar special_xlog1py.self_scalar special_xlogy.default
        special_xlogy.other_scalar special_xlogy.self_scalar special_zeta.default special_zeta.other_scalar
        special_zeta.self_scalar
    """,
    "comparisons and logic": """
        __and__.Scalar __and__.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_and.Tensor
        bitwise_left_shift.Scalar_Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not.default
        bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_or.Tensor bitwise_right_shift.Scalar_Tensor
        bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar bitwise_xor.Scalar bitwise_xor.Scalar_Tensor
        bitwise_xor.Tensor eq.Scalar eq.Tensor ge.Scalar ge.Tensor greater.Scalar greater.Tensor greater_equal.Scalar
        greater_equal.Tensor gt.Scalar gt.Tensor heaviside.default isclose.default isfinite.default isin.Scalar_Tensor
        isin.Tensor_Scalar isin.Tensor_Tensor isinf.default isnan.default isneginf.default isposinf.default
        isreal.default le.Scalar le.Tensor less.Scalar less.Tensor less_equal.Scalar less_equal.Tensor
        logical_and.default logical_not.default logical_or.default logical_xor.default __lshift__.Scalar
        __lshift__.Tensor lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor masked_scatter.default ne.Scalar
        ne.Tensor not_equal.Scalar not_equal.Tensor __or__.Scalar __or__.Tensor __rshift__.Scalar __rshift__.Tensor
        where.Scalar where.ScalarOther where.ScalarSelf where.default where.self __xor__.Scalar __xor__.Tensor
    """,
    "activations": """
        celu.default elu.default gelu.default glu.default hardshrink.default hardsigmoid.default hardswish.default
        hardtanh.default leaky_relu.default log_sigmoid.default log_sigmoid_forward.default _log_softmax.default
        log_softmax.int mish.default prelu.default _prelu_kernel.default relu.default relu6.default
        _safe_softmax.default selu.default sigmoid.default silu.default _softmax.default softmax.int softplus.default
        softshrink.default threshold.default
    """,
    "linear algebra": """
        addbmm.default addmm.default addmm.dtype _addmm_activation.default addmv.default addr.default baddbmm.default
        baddbmm.dtype bilinear.default bmm.default bmm.dtype cdist.default _cdist_forward.default chain_matmul.default
        cholesky.default cholesky_inverse.default cholesky_solve.default cosine_similarity.default det.default
        dist.default dot.default einsum.default _euclidean_dist.default frobenius_norm.dim ger.default inner.default
        inverse.default kron.default linalg_cholesky.default linalg_cholesky_ex.default linalg_cond.default
        linalg_cond.p_str _linalg_det.default linalg_det.default linalg_diagonal.default _linalg_eigh.default
        linalg_eigh.default linalg_eigvalsh.default linalg_householder_product.default linalg_inv.default
        linalg_inv_ex.default linalg_lu.default linalg_lu_factor.default linalg_lu_solve.default linalg_matmul.default
        linalg_matrix_exp.default linalg_matrix_norm.default linalg_matrix_norm.str_ord linalg_matrix_power.default
        linalg_multi_dot.default linalg_norm.default linalg_norm.ord_str linalg_pinv.atol_rtol_float
        linalg_pinv.atol_rtol_tensor linalg_pinv.default linalg_pinv.rcond_tensor linalg_qr.default
        _linalg_slogdet.default linalg_slogdet.default linalg_solve.default _linalg_solve_ex.default
        linalg_solve_ex.default linalg_solve_triangular.default _linalg_svd.default linalg_svd.default
        linalg_svdvals.default linalg_vecdot.default linalg_vector_norm.default linear.default logdet.default
        matmul.default matrix_exp.default matrix_power.default mm.default mm.dtype mv.default norm.Scalar
        norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype norm_except_dim.default nuclear_norm.default
        nuclear_norm.dim outer.default pairwise_distance.default pdist.default pinverse.default renorm.default
        slogdet.default tensordot.default trace.default triangular_solve.default _trilinear.default vdot.default
        _weight_norm.default _weight_norm_interface.default
    """,
    "convolutions": """
        conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
        _conv_depthwise2d.default conv_depthwise3d.default conv_tbc.default conv_transpose1d.default
        conv_transpose2d.input conv_transpose3d.input _convolution.default convolution.default _convolution.deprecated
    """,
    "normalisation": """
        batch_norm.default _batch_norm_no_update.default _fused_rms_norm.default group_norm.default
        instance_norm.default layer_norm.default native_batch_norm.default _native_batch_norm_legit.no_stats
        _native_batch_norm_legit_no_training.default native_group_norm.default native_layer_norm.default
        rms_norm.default
    """,
    "pooling": """
        adaptive_avg_pool1d.default _adaptive_avg_pool2d.default adaptive_avg_pool2d.default
        _adaptive_avg_pool3d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default adaptive_max_pool2d.default
        adaptive_max_pool3d.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
        fractional_max_pool2d.default fractional_max_pool3d.default max_pool1d.default max_pool1d_with_indices.default
        max_pool2d.default max_pool2d_with_indices.default max_pool3d.default max_pool3d_with_indices.default
        max_unpool2d.default max_unpool3d.default
    """,
    "padding": """
        constant_pad_nd.default pad.default _pad_circular.default _pad_enum.default pad_sequence.default
        reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default replication_pad1d.default
        replication_pad2d.default replication_pad3d.default
    """,
    "resampling": """
        affine_grid_generator.default channel_shuffle.default col2im.default grid_sampler.default
        grid_sampler_2d.default grid_sampler_3d.default im2col.default native_channel_shuffle.default
        pixel_shuffle.default pixel_unshuffle.default unfold.default unfold_copy.default upsample_bicubic2d.default
        upsample_bicubic2d.vec _upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec upsample_bilinear2d.default
        upsample_bilinear2d.vec _upsample_bilinear2d_aa.default _upsample_bilinear2d_aa.vec upsample_linear1d.default
        upsample_linear1d.vec upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default
        upsample_nearest2d.vec upsample_nearest3d.default upsample_nearest3d.vec _upsample_nearest_exact1d.default
        _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec
        _upsample_nearest_exact3d.default _upsample_nearest_exact3d.vec upsample_trilinear3d.default
        upsample_trilinear3d.vec
    """,
    "attention and recurrence": """
        gru.input gru_cell.default lstm.input lstm_cell.default _native_multi_head_attention.default rnn_relu.input
        rnn_relu_cell.default rnn_tanh.input rnn_tanh_cell.default scaled_dot_product_attention.default
        _scaled_dot_product_flash_attention_for_cpu.default _transformer_encoder_layer_fwd.default
    """,
    "shapes": """
        adjoint.default as_strided.default atleast_1d.Sequence atleast_1d.default atleast_2d.Sequence atleast_2d.default
        atleast_3d.Sequence atleast_3d.default broadcast_tensors.default broadcast_to.default expand.default
        expand_as.default expand_copy.default flatten.using_ints flip.default fliplr.default flipud.default mH.default
        mT.default matrix_H.default moveaxis.int moveaxis.intlist movedim.int movedim.intlist numpy_T.default
        permute.default permute_copy.default ravel.default repeat.default repeat_interleave.Tensor
        repeat_interleave.self_Tensor repeat_interleave.self_int reshape.default reshape_as.default
        _reshape_copy.default roll.default rot90.default squeeze.default squeeze.dim squeeze.dims squeeze_copy.default
        squeeze_copy.dim squeeze_copy.dims swapaxes.default swapdims.default t.default t_copy.default tile.default
        transpose.int transpose_copy.int unflatten.int _unsafe_view.default unsqueeze.default unsqueeze_copy.default
        view.default view.dtype view_as.default view_copy.default view_copy.dtype
    """,
    "joining and cutting": """
        as_strided_copy.default block_diag.default cartesian_prod.default cat.default chunk.default column_stack.default
        combinations.default concat.default concatenate.default diag.default diag_embed.default diagflat.default
        diagonal.default diagonal_copy.default diagonal_scatter.default dsplit.array dsplit.int dstack.default
        hsplit.array hsplit.int hstack.default meshgrid.default meshgrid.indexing narrow.Tensor narrow.default
        narrow_copy.default row_stack.default select.int select_copy.int select_scatter.default slice.Tensor
        slice_copy.Tensor slice_scatter.default split.Tensor split.sizes split_copy.Tensor split_with_sizes.default
        split_with_sizes_copy.default _stack.default stack.default tensor_split.indices tensor_split.sections
        tensor_split.tensor_indices_or_sections tril.default triu.default unbind.int unbind_copy.int
        unsafe_chunk.default unsafe_split.Tensor unsafe_split_with_sizes.default vsplit.array vsplit.int vstack.default
    """,
    "indexing": """
        argwhere.default embedding.default _embedding_bag.default embedding_bag.default embedding_bag.padding_idx
        _embedding_bag_forward_only.default gather.default index.Tensor index_add.default index_copy.default
        index_fill.int_Scalar index_fill.int_Tensor index_put.default index_reduce.default index_select.default
        masked_select.default nonzero.default nonzero_static.default put.default scatter.reduce scatter.src
        scatter.value scatter.value_reduce scatter_add.default scatter_reduce.two take.default take_along_dim.default
        _unsafe_index.Tensor _unsafe_index_put.default
    """,
    "reductions": """
        all.default all.dim all.dims amax.default amin.default aminmax.default any.default any.dim any.dims
        argmax.default argmin.default count_nonzero.default count_nonzero.dim_IntList histc.default logsumexp.default
        max.default max.dim max.other mean.default mean.dim median.default median.dim min.default min.dim min.other
        mode.default nanmean.default nanmedian.default nanmedian.dim nanquantile.default nanquantile.scalar
        nansum.default prod.default prod.dim_int quantile.default quantile.scalar std.correction std.default std.dim
        std_mean.correction std_mean.default std_mean.dim sum.default sum.dim_IntList sum_to_size.default var.correction
        var.default var.dim var_mean.correction var_mean.default var_mean.dim
    """,
    "sorting and scanning": """
        argsort.default argsort.stable bincount.default bucketize.Scalar bucketize.Tensor cummax.default cummin.default
        cumprod.default cumsum.default cumulative_trapezoid.dx cumulative_trapezoid.x diff.default kthvalue.default
        _logcumsumexp.default logcumsumexp.default msort.default searchsorted.Scalar searchsorted.Tensor sort.default
        sort.stable topk.default trapezoid.dx trapezoid.x trapz.dx trapz.x _unique2.default unique_consecutive.default
        unique_dim.default
    """,
    "Fourier transforms": """
        fft_fft.default fft_fft2.default fft_fftfreq.default fft_fftn.default fft_fftshift.default fft_hfft.default
        fft_hfft2.default fft_hfftn.default fft_ifft.default fft_ifft2.default fft_ifftn.default fft_ifftshift.default
        fft_ihfft.default fft_ihfft2.default fft_ihfftn.default fft_irfft.default fft_irfft2.default fft_irfftn.default
        fft_rfft.default fft_rfft2.default fft_rfftfreq.default fft_rfftn.default istft.default stft.center stft.default
    """,
    "stochastic, with the draw switched off": """
        alpha_dropout.default dropout.default feature_alpha_dropout.default feature_dropout.default
        native_dropout.default rrelu.default
    """,
    "losses": """
        binary_cross_entropy.default binary_cross_entropy_with_logits.default cosine_embedding_loss.default
        cross_entropy_loss.default huber_loss.default kl_div.default l1_loss.default mse_loss.default nll_loss.default
        nll_loss_nd.default smooth_l1_loss.default
    """,
}

OPERATORS: frozenset[str] = frozenset(f"aten.{name}" for family in FAMILIES.values() for name in family.split())

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.mul": operator.mul,
    "operator.floordiv": operator.floordiv,
    "operator.mod": operator.mod,
    "operator.neg": operator.neg,
    "operator.pow": operator.pow,
    "operator.getitem": operator.getitem,
    "operator.eq": operator.eq,
    "operator.ne": operator.ne,
    "operator.lt": operator.lt,
    "operator.le": operator.le,
    "operator.gt": operator.gt,
    "operator.ge": operator.ge,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "mcdrop.noise": draws.noise,
    "mcdrop.scale": draws.scale,
    "mcdrop.alpha_scale": draws.alpha_scale,
    "mcdrop.bernoulli": draws.bernoulli,
}
"""Arithmetic on sizes, and the three functions by which noise enters."""

SWITCHED_OFF: Mapping[str, tuple[tuple[str, Any], ...]] = {
    "aten.dropout.default": (("train", False),),
    "aten.feature_dropout.default": (("train", False),),
    "aten.alpha_dropout.default": (("train", False),),
    "aten.feature_alpha_dropout.default": (("train", False),),
    "aten.native_dropout.default": (("train", False),),
    "aten.rrelu.default": (("training", False),),
    "aten.scaled_dot_product_attention.default": (("dropout_p", 0.0),),
    "aten._scaled_dot_product_flash_attention_for_cpu.default": (("dropout_p", 0.0),),
    "aten.lstm.input": (("train", False), ("dropout", 0.0)),
    "aten.gru.input": (("train", False), ("dropout", 0.0)),
    "aten.rnn_tanh.input": (("train", False), ("dropout", 0.0)),
    "aten.rnn_relu.input": (("train", False), ("dropout", 0.0)),
    "aten.batch_norm.default": (("training", False), ("running_mean", None)),
    "aten.native_batch_norm.default": (("training", False), ("running_mean", None)),
    "aten.instance_norm.default": (("use_input_stats", False), ("running_mean", None)),
}
"""Operations that draw or update statistics unless one of these arguments has this value."""

ZEROED: Mapping[str, str] = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.new_empty.default": "aten.new_zeros.default",
}
"""Memory left as it is found would be random and could show what the process held before: it is read as zeros."""

FACTORIES: frozenset[str] = frozenset(
    """
    full ones zeros empty new_full new_ones new_zeros new_empty eye tril_indices triu_indices linspace logspace
    bartlett_window blackman_window hamming_window hann_window kaiser_window
    expand expand_copy broadcast_to repeat tile repeat_interleave one_hot nonzero_static histc bincount combinations
    pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d _pad_circular _pad_enum diag_embed diagflat col2im affine_grid_generator
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    max_unpool2d max_unpool3d upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    """.split()  # noqa: SIM905
)
"""Operations whose whole-number arguments make memory: the product of the constants of a call is bounded."""

_NAMES: Mapping[Callable[..., Any], str] = {function: name for name, function in FUNCTIONS.items()}


def name_of(target: object) -> str | None:
    """The stored name of a call's target; None when the list has no such operation."""
    if isinstance(target, torch._ops.OpOverload):
        name = str(target)
        return name if name in OPERATORS else None
    return _NAMES.get(target) if callable(target) else None


def function_of(name: str) -> Callable[..., Any] | None:
    """The function of a stored name; None when the list, or the torch that runs, has no such operation."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if name not in OPERATORS:
        return None
    _, packet, overload = name.split(".")
    found: Callable[..., Any] | None = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    return found
