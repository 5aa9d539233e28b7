"""Provide operators that edgec does not compile, and why."""

from typing import Never

from edgec.compiler.frontend.node import Node, Refusal


def refuse_random(node: Node) -> Never:
    """Return random numbers."""
    raise Refusal(
        "its result is random; a bundle's outputs follow from its inputs alone, so make the "
        "numbers an input of the model"
    )


def refuse_image_decoder(node: Node) -> Never:
    """Return files of images."""
    raise Refusal("image files are not decoded; feed the model decoded pixels")


def refuse_text(node: Node) -> Never:
    """Return text and what is made of it."""
    raise Refusal("text is not supported; feed the model numbers")
