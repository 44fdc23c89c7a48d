"""Settings of the generate stage, and what their short names stand for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from obverse.engine.errors import BackendError
from obverse.engine.records.settings import StageSettings

__all__ = ["DEMO_MODEL", "GenerateSettings", "is_local", "model_source", "resolve_backend"]

BackendName = Literal["vllm", "transformers", "openai"]

DEMO_MODEL = Path(__file__).parent / "demo_model"


class GenerateSettings(StageSettings):
    """How text is written for each target. ``model = "Qwen/Qwen3-8B"`` is all that a GPU user needs to set."""

    backend: Literal["auto", "vllm", "transformers", "openai"] = "auto"
    """Which engine runs the model; auto is vLLM where it is installed, else transformers."""
    model: str = Field(default="demo", min_length=1)
    """The embedded demo model ("demo"), a Hugging Face id, a folder, or a server's model name (openai)."""
    prompt: str = Field(default="auto", min_length=1)
    """auto | facts | instruct | label, or a Jinja2 template (the text itself or a file's path)."""
    system: str | None = None
    """A system message put before every chat prompt."""
    max_tokens: int = Field(default=160, ge=1, le=131072)
    """The most tokens written for one row; a row cut here has finish_reason "length"."""
    temperature: float = Field(default=0.8, ge=0.0, le=2.0)
    """Sampling temperature; 0 takes the likeliest token each time."""
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    """Nucleus sampling: draw from the fewest likeliest tokens that hold this much probability."""
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Where an OpenAI-compatible server listens, such as http://127.0.0.1:8000/v1 (backend openai only)."""
    concurrency: int | None = Field(default=None, ge=1, le=65536)
    """Rows in flight at once; None: twice vLLM's max_num_seqs, 32 per transformers batch, 32 HTTP requests."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the engine, by its own names (such as tensor_parallel_size); unknown ones raise."""

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_read(cls, value: str) -> str:
        # A wrong name or template must be known before a model is loaded, so it is compiled here.
        from obverse.engine.generate.prompts import check_prompt

        check_prompt(value)
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.backend == "openai":
            if self.base_url is None:
                raise ValueError("backend 'openai' needs base_url, such as http://127.0.0.1:8000/v1")
            if self.model == "demo":
                raise ValueError("backend 'openai' needs model: the name of a model that the server has")
        elif self.base_url is not None:
            raise ValueError(f"base_url is for backend 'openai' alone; backend is {self.backend!r}")
        if self.model.startswith(("/", "./", "../", "~")) and not Path(self.model).expanduser().is_dir():
            raise ValueError(f"model {self.model!r} looks like a folder, and there is none of that name")
        return self


def resolve_backend(settings: GenerateSettings) -> BackendName:
    """The engine that "auto" stands for on this machine."""
    if settings.backend != "auto":
        return settings.backend
    return "vllm" if importlib.util.find_spec("vllm") is not None else "transformers"


def model_source(settings: GenerateSettings) -> str:
    """What to hand an engine as its model: the demo model's folder, an expanded path, or the name unchanged.

    Raises `BackendError` when the demo model's folder is not in this installation.
    """
    if settings.model == "demo":
        if not (DEMO_MODEL / "config.json").is_file():
            raise BackendError(
                "the embedded demo model is missing from this installation (engine/generate/demo_model); "
                "reinstall obverse, or train it anew with examples/demo_model"
            )
        return str(DEMO_MODEL)
    return str(Path(settings.model).expanduser()) if is_local(settings) else settings.model


def is_local(settings: GenerateSettings) -> bool:
    """Whether the model is read from a folder, so that nothing need be asked of a hub."""
    return settings.model == "demo" or Path(settings.model).expanduser().is_dir()
