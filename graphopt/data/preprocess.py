"""From a picture to a model's input, said in one line.

``resize=256,crop=224,scale=1/127.5,mean=1,std=1,layout=nchw,color=rgb`` means, in this order: convert to the
colour order, resize, cut out the centre, then ``(pixel * scale - mean) / std`` in float32. ``mean`` and
``std`` are therefore in pixel units *after* scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, field_validator

from graphopt.data.samples import Array
from graphopt.errors import SampleError
from graphopt.explain import explain

if TYPE_CHECKING:
    from PIL.Image import Image

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FACTOR = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER})\s*)?")


@dataclass(frozen=True)
class Factor:
    """A number that may be a quotient: ``1/127.5`` divides, since float32 rounds a product otherwise."""

    times: float = 1.0
    over: float = 1.0

    @property
    def value(self) -> float:
        """The quotient."""
        return self.times / self.over

    def __str__(self) -> str:
        return _text(self.times) if self.over == 1 else f"{_text(self.times)}/{_text(self.over)}"


def _text(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _factor(value: object) -> Factor:
    if isinstance(value, Factor):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number or a quotient such as 1/255")
    match = _FACTOR.fullmatch(str(value))
    if match is None or float(match[2] or 1) == 0:
        raise ValueError(f"{value!r} is no number and no quotient such as 1/255")
    return Factor(float(match[1]), float(match[2] or 1))


def _factors(value: object) -> tuple[Factor, ...]:
    if isinstance(value, str):
        return tuple(_factor(part) for part in value.split(","))
    if isinstance(value, list | tuple):
        return tuple(_factor(part) for part in value)
    return (_factor(value),)


def _size(value: object) -> int | tuple[int, int]:
    """A short side, or (width, height)."""
    parts = str(value).lower().split("x") if isinstance(value, int | str) else list(value)  # type: ignore[call-overload]
    try:
        sizes = tuple(int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is no size: write 224 or 320x240 (width x height)") from None
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(f"{value!r} is no size: write 224 or 320x240 (width x height)")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


Quotient = Annotated[Factor, BeforeValidator(_factor), PlainSerializer(str)]
Channels = Annotated[
    tuple[Factor, ...], BeforeValidator(_factors), PlainSerializer(lambda many: ",".join(map(str, many)))
]
Size = Annotated[
    int | tuple[int, int],
    BeforeValidator(_size),
    PlainSerializer(lambda size: size if isinstance(size, int) else f"{size[0]}x{size[1]}"),
]


class Preprocess(BaseModel):
    """How a picture becomes an input, ``[1,C,H,W]`` or ``[1,H,W,C]``. EXIF rotation is not applied."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    resize: Size | None = Field(None, description="short side, the other in proportion; or WxH")
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = Field(
        "bilinear", description="how resize interpolates"
    )
    crop: Size | None = Field(None, description="cut this square, or WxH, out of the centre")
    scale: Quotient = Field(Factor(), description="factor on pixel values 0..255; 1/255 divides")
    mean: Channels = Field((Factor(0.0),), description="taken off after scale; one value, or one a channel")
    std: Channels = Field((Factor(),), description="divided by at last; one value, or one a channel")
    layout: Literal["nchw", "nhwc"] = Field("nchw", description="where the channels stand")
    color: Literal["rgb", "bgr", "gray"] = Field("rgb", description="order of the channels")

    @field_validator("std")
    @classmethod
    def _not_zero(cls, many: tuple[Factor, ...]) -> tuple[Factor, ...]:
        if any(factor.value == 0 for factor in many):
            raise ValueError("cannot be 0, it is divided by")
        return many

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``key=value,key=value``; a part without ``=`` continues the value before it (``mean=1,2,3``).

        Raises:
            SampleError: GO-407, an unknown key or a bad value.
        """
        fields: dict[str, str] = {}
        last = ""
        for part in text.split(",") if text.strip() else []:
            key, equals, value = part.partition("=")
            if equals:
                last = key.strip()
                if last in fields:
                    raise _bad(f"{last!r} is given twice")
                fields[last] = value.strip()
            elif last:
                fields[last] += "," + part.strip()
            else:
                raise _bad(f"cannot read {part!r}")
        return cls.of(fields)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Preprocess:
        """Build from a table, e.g. a recipe's.

        Raises:
            SampleError: GO-407, an unknown key or a bad value.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _bad(explain(error, cls)) from None

    @property
    def channels(self) -> int:
        """1 for gray, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def arithmetic(self) -> bool:
        """Whether pixel values change at all."""
        plain = (self.scale, *self.std)
        return any(f.value != 1 for f in plain) or any(f.value != 0 for f in self.mean)

    def apply(self, image: Image, dtype: np.dtype[Any]) -> Array:
        """One picture as the model's input.

        Args:
            image: any 8-bit Pillow image.
            dtype: the input's type. Integer types take pixel values 0..255 as they are.

        Returns:
            ``[1,C,H,W]`` or ``[1,H,W,C]`` of ``dtype``.

        Raises:
            SampleError: GO-403, more than 8 bits a channel; GO-407, the crop is larger than the picture,
                ``mean`` or ``std`` has another number of channels, or arithmetic is asked for on an integer
                input.
        """
        if image.mode in ("F", "I") or image.mode.startswith("I;"):
            hint = "convert it to 8 bits, or give arrays in an npz file"
            raise SampleError("GO-403", f"pictures of mode {image.mode} have more than 8 bits a channel", hint=hint)
        small = self._cropped(self._resized(image.convert("L" if self.color == "gray" else "RGB")))
        pixels = np.asarray(small).reshape(small.height, small.width, self.channels)
        values = self._values(pixels[..., ::-1] if self.color == "bgr" else pixels, dtype)
        return np.ascontiguousarray((values.transpose(2, 0, 1) if self.layout == "nchw" else values)[None])

    def _resized(self, image: Image) -> Image:
        if self.resize is None:
            return image
        if isinstance(self.resize, int):
            # As torchvision's Resize: the long side is rounded down.
            short, long = sorted(image.size)
            other = int(self.resize * long / short)
            size = (self.resize, other) if image.width <= image.height else (other, self.resize)
        else:
            size = self.resize
        if size == image.size:
            return image
        from PIL import Image as Pillow

        return image.resize(size, Pillow.Resampling[self.filter.upper()])

    def _cropped(self, image: Image) -> Image:
        if self.crop is None:
            return image
        width, height = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if width > image.width or height > image.height:
            raise _bad(
                f"cannot crop {width}x{height} out of a picture of {image.width}x{image.height}",
                "resize first: resize=SHORT_SIDE,crop=SIZE",
            )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))

    def _values(self, pixels: Array, dtype: np.dtype[Any]) -> Array:
        if dtype.kind in "iub":
            if self.arithmetic:
                raise _bad(f"the input is {dtype.name}: scale, mean and std need a float input")
            return pixels.astype(dtype)
        for name, many in (("mean", self.mean), ("std", self.std)):
            if len(many) not in (1, self.channels):
                raise _bad(f"{name} has {len(many)} values for {self.channels} channels")
        # Step by step in float32, as models' own preprocessing is written: folding the steps into one product
        # and one sum rounds differently.
        x = pixels.astype(np.float32)
        if self.scale.times != 1:
            x *= np.float32(self.scale.times)
        if self.scale.over != 1:
            x /= np.float32(self.scale.over)
        x -= np.array([f.value for f in self.mean], np.float32)
        x /= np.array([f.value for f in self.std], np.float32)
        return x.astype(dtype, copy=False)


def _bad(what: str, hint: str | None = None) -> SampleError:
    keys = ", ".join(Preprocess.model_fields)
    return SampleError("GO-407", f"preprocessing: {what}", hint=hint or f"keys: {keys}")
