"""Settings of the generate stage, and what their short names stand for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from obverse.engine.errors import BackendError
from obverse.engine.records.settings import StageSettings

__all__ = [
    "DEMO_MODEL",
    "FewShotSettings",
    "GenerateSettings",
    "OutputSettings",
    "Reason",
    "SamplingSettings",
    "is_local",
    "model_source",
    "resolve_backend",
]

BackendName = Literal["vllm", "transformers", "openai"]
Reason = Literal["empty", "length", "refusal", "structured", "extract"]
RETRIED: tuple[Reason, ...] = ("empty", "refusal", "structured", "extract")

DEMO_MODEL = Path(__file__).parent / "demo_model"


class SamplingSettings(StageSettings):
    """How tokens are drawn, and where a text ends."""

    max_tokens: int = Field(default=160, ge=1, le=131072)
    """The most tokens written for one row; a row cut here has finish_reason "length"."""
    temperature: float = Field(default=0.8, ge=0.0, le=2.0)
    """Sampling temperature; 0 takes the likeliest token each time."""
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)
    """Nucleus sampling: draw from the fewest likeliest tokens that hold this much probability."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """A text ends before the first of these strings."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """More of vLLM's SamplingParams, by its own names (such as top_k, min_p, extra_args); unknown ones raise."""


class FewShotSettings(StageSettings):
    """Examples put before every prompt, chosen by relation or label."""

    examples: Path | None = None
    """Rows with a text and its triplets or label (JSONL, CSV, Parquet, ...)."""
    shots: int = Field(default=3, ge=1, le=64)
    """Examples before each prompt."""
    examples_by: Literal["auto", "relation", "label", "none"] = "auto"
    """What a row shares with its examples: its first relation, its label, or nothing; auto goes by what it has."""


class OutputSettings(StageSettings):
    """What a text must be, what is taken from it, and when a row is written again."""

    attempts: int = Field(default=1, ge=1, le=32)
    """The most attempts at one row, each with a seed of its own."""
    retry_on: list[Reason] = Field(default_factory=lambda: list(RETRIED))
    """Why a row is tried again, and after the last attempt is an error (a cut text, "length", is kept)."""
    retry_share: float = Field(default=0.25, ge=0.0)
    """The most attempts beyond the first, in all, as a share of the rows done so far (100 in any case)."""
    structured: dict[str, Any] | None = None
    """{"json": SCHEMA}, {"regex": PATTERN}, {"choice": [TEXT, ...]} or {"grammar": EBNF}, held while writing."""
    extract: dict[str, str] | None = None
    """What of the text is kept: {"field": NAME} of its JSON object or {"regex": PATTERN}, its first group."""

    @field_validator("structured")
    @classmethod
    def _structure_is_sound(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        from obverse.engine.generate.structured import check_structured

        if value is not None:
            check_structured(value)
        return value

    @field_validator("extract")
    @classmethod
    def _extraction_is_sound(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        from obverse.engine.generate.extract import check_extract

        if value is not None:
            check_extract(value)
        return value


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
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Where an OpenAI-compatible server listens, such as http://127.0.0.1:8000/v1 (backend openai only)."""
    concurrency: int | None = Field(default=None, ge=1, le=65536)
    """Rows in flight at once; None: twice vLLM's max_num_seqs, 32 per transformers batch, 256 HTTP requests."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the engine, by its own names (such as tensor_parallel_size); unknown ones raise."""
    sampling: SamplingSettings = SamplingSettings()
    """How tokens are drawn, and where a text ends."""
    few_shot: FewShotSettings = FewShotSettings()
    """Examples put before every prompt."""
    output: OutputSettings = OutputSettings()
    """What a text must be, what is taken from it, and when a row is written again."""

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_read(cls, value: str) -> str:
        # A wrong name or template must be known before a model is loaded, so it is compiled here.
        from obverse.engine.generate.templates import check_prompt

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
        if self.few_shot.examples is not None:
            self._examples_fit()
        return self

    def _examples_fit(self) -> None:
        from obverse.engine.generate.templates import NAMES, compile_template, prompt_source

        if self.model == "demo":
            raise ValueError("few_shot.examples: the demo model was trained without examples; name another model")
        if self.prompt not in NAMES and "examples" not in compile_template(prompt_source(self)).names:
            raise ValueError(
                "few_shot.examples is set, and the template does not show them: put "
                "{% for example in examples %}...{{ example.text }}{% endfor %} where they belong"
            )


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
