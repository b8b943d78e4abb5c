"""What is asked of generators, from coarse to fine (FedMVP's appendix B; papers.md 3.2 and 3.9)."""

from __future__ import annotations


def class_prompt(category: str, subject: str, medium: str) -> str:
    """Class and super-class: names of classes alone are ambiguous."""
    return f"a {medium} of {category}, a kind of {subject}"


def image_prompt(category: str, subject: str, medium: str, caption: str) -> str:
    """Class, super-class, then the caption: long texts are cut."""
    return f"{class_prompt(category, subject, medium)}. {caption}"


def category_question(subject: str, medium: str) -> str:
    """The first turn: which category."""
    return f"Question: what kind of {subject} does this {medium} show? Answer:"


def attribute_question(first: str, category: str) -> str:
    """The second turn, after the first and its answer: what of that category is seen."""
    return f"{first} {category}. Question: what are the visible attributes of this {category}? Answer:"


def answer_in(text: str) -> str:
    """What a model said, without the further turns that it may go on to invent."""
    lines = text.split("Question:")[0].strip().splitlines()
    return lines[0].strip(" .,:") if lines else ""


def joined_caption(category: str, attributes: str) -> str:
    """Both answers; the first alone where the second is empty."""
    return f"{category}: {attributes}" if attributes else category
