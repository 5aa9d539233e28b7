"""Provide all templates, by the name of the Relax operator that each implements."""

from edgec.compiler.kernels import (
    elementwise,
    embedding,
    grouped_embedding,
    integer_elementwise,
    layout,
    pool,
    reduce_minmax,
    resize,
    row_reduce,
    softmax_norm,
    standardize,
    table_lookup,
    transpose,
    volume_pool,
)
from edgec.compiler.kernels.attention import append_rows, cached_attention, join_spans, rotate_rows
from edgec.compiler.kernels.conv import dense as conv
from edgec.compiler.kernels.conv import integer_dense, integer_depthwise, integer_transpose
from edgec.compiler.kernels.conv import sparse as sparse_conv
from edgec.compiler.kernels.matmul import dense as matmul
from edgec.compiler.kernels.matmul import grouped as grouped_matmul
from edgec.compiler.kernels.matmul import integer as integer_matmul
from edgec.compiler.kernels.matmul import (
    quantize_normalized,
    quantize_rows,
    run_time_integer,
    weight_only,
)
from edgec.compiler.kernels.matmul import sparse as sparse_matmul
from edgec.compiler.kernels.template import Template

TEMPLATES: dict[str, Template] = {
    "edgec.cache_append": append_rows.TEMPLATE,
    "edgec.cache_attention": cached_attention.TEMPLATE,
    "edgec.channel_map": layout.CHANNEL_MAP_TEMPLATE,
    "edgec.conv": conv.TEMPLATE,
    "edgec.conv_transpose": conv.TRANSPOSE_TEMPLATE,
    "edgec.elementwise": elementwise.TEMPLATE,
    "edgec.embedding": embedding.TEMPLATE,
    "edgec.extreme": reduce_minmax.TEMPLATE,
    "edgec.global_pool": layout.GLOBAL_POOL_TEMPLATE,
    "edgec.grouped_embedding": grouped_embedding.TEMPLATE,
    "edgec.grouped_product": grouped_matmul.TEMPLATE,
    "edgec.integer_conv": integer_dense.TEMPLATE,
    "edgec.integer_conv_transpose": integer_transpose.TEMPLATE,
    "edgec.integer_depthwise": integer_depthwise.TEMPLATE,
    "edgec.integer_elementwise": integer_elementwise.TEMPLATE,
    "edgec.integer_matmul": integer_matmul.TEMPLATE,
    "edgec.join_spans": join_spans.TEMPLATE,
    "edgec.lookup": table_lookup.TEMPLATE,
    "edgec.matmul": matmul.TEMPLATE,
    "edgec.pack": layout.PACK_TEMPLATE,
    "edgec.pool": pool.TEMPLATE,
    "edgec.quantize_normalized": quantize_normalized.TEMPLATE,
    "edgec.quantize_rows": quantize_rows.TEMPLATE,
    "edgec.resize": resize.TEMPLATE,
    "edgec.rotate_rows": rotate_rows.TEMPLATE,
    "edgec.row_reduce": row_reduce.TEMPLATE,
    "edgec.rows": softmax_norm.TEMPLATE,
    "edgec.run_time_integer_matmul": run_time_integer.TEMPLATE,
    "edgec.sparse_conv": sparse_conv.TEMPLATE,
    "edgec.sparse_matmul": sparse_matmul.TEMPLATE,
    "edgec.standardize": standardize.TEMPLATE,
    "edgec.stored_matmul": weight_only.TEMPLATE,
    "edgec.transpose": transpose.TEMPLATE,
    "edgec.volume_pool": volume_pool.TEMPLATE,
}
