"""Thoughts that a reasoning model writes before its answer: found by their marks, and left out."""

from __future__ import annotations

import re

_NAMES = "think|thinking|seed:think"
# DeepSeek, Qwen and many others; Mistral; Kimi.
_OPEN = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|◁think▷", re.IGNORECASE)
_CLOSE = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷", re.IGNORECASE)
# gpt-oss writes in channels; some servers lose the marks around their names.
_CHANNEL = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)\b|\Aanalysis(?=\S)")
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*<\|message\|>|assistantfinal")
_END = re.compile(r"\s*<\|(?:return|end)\|>\s*\Z")


def without_thoughts(text: str) -> str | None:
    """What a model wrote after its thoughts; None where it ends within them.

    A chat template may open the block in the prompt, so a closing mark alone ends one.
    """
    channel = _CHANNEL.search(text)
    final = [*_FINAL.finditer(text)] if channel or "<|channel|>" in text else []
    if final:
        return _END.sub("", text[final[-1].end() :])
    if channel:
        return None
    closed = [*_CLOSE.finditer(text)]
    rest = text[closed[-1].end() :] if closed else text
    return None if _OPEN.search(rest) else rest
