"""Describe how images become the input of a model, by the user's words."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgec.compiler.errors import UsageError, did_you_mean


class Preprocess(BaseModel):
    """Preprocessing describes how an image becomes an input: `(pixel * scale - mean) / std`.

    Attributes:
        resize: `stretch` to the input's size; `crop` the middle after scaling the shorter side;
            `pad` with zeros after scaling the longer side.
        color: order of the channels; an input of one channel is gray whatever this says.
        scale: the scale of the pixels 0..255.
        mean: for each channel, or one for all.
        std: likewise.
        layout: the layout of the input; `auto` takes the axis of extent 1 or 3.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: Literal["stretch", "crop", "pad"] = "stretch"
    color: Literal["rgb", "bgr"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["auto", "nchw", "nhwc"] = "auto"


def parse_preprocess(text: str) -> Preprocess:
    """Read `mean=0.485/0.456/0.406,std=0.229/0.224/0.225,resize=crop`.

    Raises:
        UsageError: names what is wrong and what is known.

    >>> parse_preprocess("mean=0.5,color=bgr").mean
    (0.5,)
    """
    known = list(Preprocess.model_fields)
    fields: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise UsageError(
                f"--preprocess {part!r} is none of {', '.join(f'{k}=…' for k in known)}"
                f"{did_you_mean(key, known)}"
            )
        fields[key] = value.split("/") if key in ("mean", "std") else value
    try:
        return Preprocess.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"--preprocess {first['loc'][0]}={first['input']}: {first['msg']}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """An image input describes that a compiled model takes images, and prepares them itself.

    Attributes:
        preprocess: what becomes part of the model.
        size: height and width of the images; None if they have those of the model's input.
    """

    preprocess: Preprocess
    size: tuple[int, int] | None = None


def parse_size(text: str) -> tuple[int, int]:
    """Read `480x640`, height and width.

    Raises:
        UsageError: it is not of that form.

    >>> parse_size("480x640")
    (480, 640)
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--image-size {text!r} is no size; write HEIGHTxWIDTH, 480x640")
    return int(parts[0]), int(parts[1])


@dataclass(frozen=True, kw_only=True)
class EmbeddedPreprocessing:
    """An embedded preprocessing describes what a model does with its images, in all details.

    Attributes:
        name: the name of the input.
        preprocess: with a layout that is no longer `auto`.
        shape: the shape of the original input, [N, C, H, W] or [N, H, W, C].
        dtype: the dtype of the original input.
        size: height and width of the images, uint8 [N, *size, C].
    """

    name: str
    preprocess: Preprocess
    shape: tuple[int, ...]
    dtype: str
    size: tuple[int, int]

    @property
    def wanted(self) -> tuple[int, int, int]:
        """Return channels, height and width of the original input."""
        first = self.preprocess.layout == "nchw"
        channels, height, width = self.shape[1:] if first else (self.shape[3], *self.shape[1:3])
        return channels, height, width


@dataclass(frozen=True)
class Fit:
    """A fit describes where an image ends up: a part of it, resized, in the middle of zeros.

    Attributes:
        crop: first row and column of the part, its height and width.
        resized: height and width that the part is resized to.
        place: first row and column that it takes.
    """

    crop: tuple[int, int, int, int]
    resized: tuple[int, int]
    place: tuple[int, int]


def fit(size: tuple[int, int], wanted: tuple[int, int], how: str) -> Fit:
    """Place an image in an input.

    Args:
        size: height and width of the image.
        wanted: height and width of the input.
        how: `stretch`, `crop` or `pad`, see `Preprocess`.

    >>> fit((480, 640), (224, 224), "crop")
    Fit(crop=(0, 80, 480, 480), resized=(224, 224), place=(0, 0))
    >>> fit((480, 640), (224, 224), "pad")
    Fit(crop=(0, 0, 480, 640), resized=(168, 224), place=(28, 0))
    """
    (rows, columns), (height, width) = size, wanted
    crop, resized, place = (0, 0, rows, columns), wanted, (0, 0)
    if how == "crop":
        kept = (rows, min(columns, max(1, round(rows * width / height))))
        if columns * height < rows * width:
            kept = (min(rows, max(1, round(columns * height / width))), columns)
        crop = ((rows - kept[0]) // 2, (columns - kept[1]) // 2, *kept)
    elif how == "pad":
        scale = min(height / rows, width / columns)
        resized = (
            min(height, max(1, round(rows * scale))),
            min(width, max(1, round(columns * scale))),
        )
        place = ((height - resized[0]) // 2, (width - resized[1]) // 2)
    return Fit(crop, resized, place)
