"""Read a folder of PEFT's that holds a LoRA adapter.

`adapter_config.json` says how it is scaled, `adapter_model.safetensors` has the factors. Settings
are those of `LoraConfig` of the package `peft`.
"""

from collections.abc import Mapping
from pathlib import Path

from edgec.compiler.errors import ModelFileError, UnsupportedModelError
from edgec.compiler.language.adapter_factors import Factors
from edgec.compiler.language.folder_text import read_json
from edgec.compiler.language.safetensors_file import SafeTensor, read_safetensors
from edgec.compiler.language.settings import Settings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Settings under which a sum of products is not all that the adapter does, and what they are.
_BEYOND = {
    "use_dora": "DoRA, which scales columns",
    "use_qalora": "QA-LoRA",
    "modules_to_save": "modules that replace those of the model",
    "trainable_token_indices": "new rows of the table of tokens",
    "target_parameters": "parameters that are no matrices of layers",
    "layer_replication": "layers that are there more than once",
    "lora_bias": "biases of factors",
    "fan_in_fan_out": "transposed matrices",
    "rank_pattern": "ranks by pattern",
    "alpha_pattern": "scales by pattern",
    "alora_invocation_tokens": "an adapter that begins at a token",
    "megatron_config": "matrices cut by Megatron",
}
# Ways to begin training that change the weights of the model, too.
_CHANGED_BASE = ("pissa", "olora", "loftq", "corda")


def peft_files(folder: Path) -> list[Path]:
    """Return the files that make an adapter."""
    return [folder / CONFIG, folder / WEIGHTS]


def read_peft(folder: Path) -> list[Factors]:
    """Read the factors of an adapter, by the names of the model's tensors.

    Raises:
        ModelFileError: a file is missing, is not what its name says, or contradicts the other.
        UnsupportedModelError: it does more than add products to matrices.
    """
    config = Settings(folder / CONFIG, read_json(folder / CONFIG))
    _refuse_others(config)
    rank = config.integer("r")
    by = rank**0.5 if config.flag("use_rslora", False) else rank
    scale = config.number("lora_alpha") / by
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise UnsupportedModelError(
            f"{folder} has adapter_model.bin, a program of pickle's, which is not read; save the "
            f"adapter as {WEIGHTS}"
        )
    tensors = read_safetensors(folder / WEIGHTS)
    pairs = _pairs(folder / WEIGHTS, tensors)
    if not pairs:
        raise ModelFileError(f"{folder / WEIGHTS} has no factors")
    found = []
    for module, (down, up) in pairs.items():
        _check_target(config, module)
        factors = Factors(f"{module}.weight", down.floats(), up.floats(), scale)
        factors.check(folder / WEIGHTS)
        if len(factors.down) != rank:
            raise ModelFileError(
                f"{folder / WEIGHTS}: {module} has the rank {len(factors.down)}; {rank} is "
                "expected by the settings"
            )
        found.append(factors)
    return found


def _refuse_others(config: Settings) -> None:
    kind = config.text("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{config.path}: an adapter of type {kind}; merged is LORA")
    for name, what in _BEYOND.items():
        if config.get(name):
            raise UnsupportedModelError(
                f"{config.path}: {name} asks for {what}, which cannot be merged here"
            )
    bias = config.text("bias", "none")
    if bias != "none":
        raise UnsupportedModelError(
            f"{config.path}: bias is {bias!r}; adapters that change biases are not merged"
        )
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASE):
        raise UnsupportedModelError(
            f"{config.path}: init_lora_weights {begun!r} changed the model's weights, too; save "
            "the adapter converted to LoRA (path_initial_model_for_weight_conversion)"
        )


def _pairs(
    path: Path, tensors: Mapping[str, SafeTensor]
) -> dict[str, tuple[SafeTensor, SafeTensor]]:
    """Return the factors by module."""
    modules: dict[str, None] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(_DOWN).removesuffix(_UP)
        if stem == name or not stem.startswith(_PREFIX):
            raise UnsupportedModelError(
                f"{path}: tensor {name} cannot be merged; known are {_PREFIX}…{_DOWN} and {_UP}"
            )
        if not tensor.is_float:
            raise UnsupportedModelError(f"{path}: {name} holds {tensor.dtype}, no floats")
        modules[stem] = None
    for stem in modules:
        for ending in (_DOWN, _UP):
            if stem + ending not in tensors:
                raise ModelFileError(f"{path}: tensor {stem}{ending} is missing")
    return {
        stem.removeprefix(_PREFIX): (tensors[stem + _DOWN], tensors[stem + _UP]) for stem in modules
    }


def _check_target(config: Settings, module: str) -> None:
    """Refuse what the settings do not name; an expression may name anything."""
    targets = config.get("target_modules")
    if isinstance(targets, list) and not any(
        module == target or module.endswith(f".{target}") for target in targets
    ):
        raise ModelFileError(
            f"{config.path}: {module} has factors, and target_modules names {', '.join(targets)}"
        )
