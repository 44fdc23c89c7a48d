"""The mix-in against float64 losses worked out without the Trainer, on tiny models made from nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from obverse.engine.errors import InputError
from obverse.engine.losses import WeightedCrossEntropy
from obverse.engine.losses.trainer import WeightedLossMixin, compute_loss_func, weighted_trainer

pytest.importorskip("accelerate")

V, CLASSES = 29, 5
Row = dict[str, Any]


def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
        initializer_range=0.2,
    )
    return BertForSequenceClassification(config)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def _t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=V,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        initializer_factor=0.7,
    )
    return T5ForConditionalGeneration(config)


MODELS = {"classes": _bert, "causal": _llama, "seq2seq": _t5}


def _rows(kind: str, num_rows: int = 8) -> list[Row]:
    """Rows of ragged lengths, each with the columns of weights and one that no one wants."""
    rng = np.random.default_rng(7)
    rows = []
    for i in range(num_rows):
        ids = rng.integers(3, V, 3 + i).tolist()
        labels: Any = int(rng.integers(CLASSES))
        if kind == "causal":
            labels = [ids[0], -100, *ids[2:]]  # nothing predicts the first
        elif kind == "seq2seq":
            labels = rng.integers(3, V, 2 + (5 * i) % 7).tolist()
        weights = {
            "sample_weight": float(rng.uniform(0.2, 3)),
            "log_quality": float(rng.normal(-1, 0.5)),
            "log_diversity": float(rng.normal(-1, 0.5)),
        }
        rows.append({"input_ids": ids, "labels": labels, "note": "a text", **weights})
    return rows


def _collate(rows: list[Row]) -> dict[str, Tensor]:
    """Pads to the batch's longest row and takes every column of numbers it is given."""
    assert all("note" not in row for row in rows), "the Trainer left a column that no one wants"
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(r["input_ids"]) + [0] * (width - len(r["input_ids"])) for r in rows]),
    }
    if isinstance(rows[0]["labels"], int):
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    else:
        width = max(len(row["labels"]) for row in rows)
        batch["labels"] = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    for name in rows[0].keys() - {"input_ids", "labels"}:
        batch[name] = torch.tensor([row[name] for row in rows])
    return batch


def _refuse_the_losses_own(model: Any, args: Any, inputs: dict[str, Any]) -> None:
    """Models take any keyword in silence, and with labels they would work out a loss that no one wants."""
    given = inputs.keys() & {"labels", "shift_labels", "sample_weight", "log_quality", "log_diversity"}
    assert not given, f"the model was given {given}"


def _trainer(model: Any, rows: list[Row], folder: Path, loss: WeightedCrossEntropy, **given: Any) -> Any:
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

    seq2seq = type(model).__name__.startswith("T5")
    own = ("eval_loss", "class_weight", "shift_labels", "columns", "eval_dataset", "compute_metrics")
    extra = {name: given.pop(name) for name in own if name in given}
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 0.5,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
    }
    args = Seq2SeqTrainingArguments(**(settings | given))
    model.register_forward_pre_hook(_refuse_the_losses_own, with_kwargs=True)
    cls = weighted_trainer(Seq2SeqTrainer if seq2seq else Trainer)
    return cls(model=model, args=args, train_dataset=rows, data_collator=_collate, loss=loss, **extra)


def _truth(
    model: Any, rows: list[Row], scheme: str, *, class_weight: Tensor | None = None, level: str = "token"
) -> Any:
    """The loss of all rows in float64, and its gradient step, in torch's own ops."""
    model = copy.deepcopy(model).double()
    batch = _collate([{name: row[name] for name in row if name != "note"} for row in rows])
    labels = batch["labels"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if type(model).__name__.startswith("T5"):
        start = torch.zeros(len(rows), 1, dtype=torch.int64)
        inputs["decoder_input_ids"] = torch.cat([start, labels[:, :-1].clamp_min(0)], dim=1)
    logits = model(**inputs).logits
    if type(model).__name__.startswith("Llama"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != -100
    log_p = logits.log_softmax(-1).gather(-1, labels.clamp_min(0)[..., None]).squeeze(-1)

    def each(name: str) -> Tensor:
        return batch[name].double().reshape(-1, *[1] * (labels.ndim - 1))

    weight = torch.ones_like(log_p)
    if scheme == "sample_weight":
        weight = weight * each("sample_weight")
    elif scheme == "imp":
        weight = each("sample_weight") * (each("log_quality") - each("log_diversity")).exp().clamp(0.1, 10) * weight
    elif scheme == "dimp":
        below = log_p.detach()
        if level == "sequence":
            below = (below * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True)
        weight = each("sample_weight") * (each("log_quality") - below).exp().clamp(0.1, 10)
    elif scheme == "focal":
        weight = each("sample_weight") * (1 - log_p.exp()).square()
    if class_weight is not None:
        weight = weight * class_weight.double()[labels.clamp_min(0)]
    loss = (-log_p * weight * counted).sum() / counted.sum()
    loss.backward()
    stepped = {n: p.detach() - 0.5 * p.grad for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), stepped


def _logged(trainer: Any) -> float:
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def _assert_stepped(model: Any, expected: dict[str, Tensor]) -> None:
    """Within float32's rounding of what has been added up: 1e-6 of the largest number of the model."""
    found = dict(model.named_parameters())
    assert expected
    largest = max(float(values.abs().max()) for values in expected.values())
    for name, values in expected.items():
        off = float((found[name].detach().double() - values).abs().max())
        assert off <= 1e-6 * largest, f"{name} is {off} off, the largest number is {largest}"


def _loss(scheme: str, **settings: Any) -> WeightedCrossEntropy:
    return WeightedCrossEntropy(scheme, gamma=2.0 if scheme == "focal" else 1.0, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scheme", ["plain", "sample_weight", "imp", "dimp", "focal"])
def test_trainer_steps_by_the_float64_loss_however_a_step_is_cut(kind: str, scheme: str, tmp_path: Path) -> None:
    """1 x 8 rows and 4 x 2 rows, of ragged token counts, both give the float64 step."""
    rows, start = _rows(kind), MODELS[kind]()
    loss, stepped = _truth(start, rows, scheme)
    for size in (8, 2):
        model = copy.deepcopy(start)
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        trainer = _trainer(model, rows, tmp_path, _loss(scheme), **cut)
        trainer.train()
        assert _logged(trainer) == pytest.approx(loss, rel=2e-5)
        _assert_stepped(model, stepped)


def test_trainer_takes_settings_and_class_weights(tmp_path: Path) -> None:
    rows, start = _rows("classes"), _bert()
    weight = torch.linspace(0.3, 2, CLASSES)
    loss, stepped = _truth(start, rows, "dimp", class_weight=weight)
    trainer = _trainer(start, rows, tmp_path, _loss("dimp", inplace=True), class_weight=weight)
    trainer.train()
    assert _logged(trainer) == pytest.approx(loss, rel=1e-5)
    _assert_stepped(start, stepped)


def test_trainer_weighs_whole_sequences(tmp_path: Path) -> None:
    rows, start = _rows("seq2seq"), _t5()
    loss, stepped = _truth(start, rows, "dimp", level="sequence")
    model = copy.deepcopy(start)
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = _trainer(model, rows, tmp_path, _loss("dimp", level="sequence"), **cut)
    trainer.train()
    assert _logged(trainer) == pytest.approx(loss, rel=1e-5)
    _assert_stepped(model, stepped)


def test_trainer_weights_of_tokens_move_with_the_labels(tmp_path: Path) -> None:
    """Of a causal model: the weight at place t belongs to the label at t, which the logits at t - 1 predict."""
    model, rows = _llama(), _rows("causal", 4)
    batch = _collate([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    batch["sample_weight"] = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(1))
    trainer = _trainer(model, rows, tmp_path, _loss("sample_weight"))
    found = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(10))
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].double()
    each = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
    expected = (each * batch["sample_weight"][:, 1:].flatten()).sum() / 10
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_trainer_normalised_losses_are_the_mean_over_a_step(tmp_path: Path) -> None:
    """With a normalisation a micro-batch has its own denominator; the step is their mean, not their sum."""
    rows, start = _rows("classes"), _bert()
    parts = []
    for part in (rows[:4], rows[4:]):
        batch = _collate([{name: row[name] for name in row if name != "note"} for row in part])
        logits = start(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
        each = F.cross_entropy(logits, batch["labels"], reduction="none")
        weight = batch["sample_weight"].double()
        parts.append(float(((each * weight).sum() / weight.sum()).detach()))
    cut = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    trainer = _trainer(start, rows, tmp_path, _loss("sample_weight", normalisation="batch"), **cut)
    trainer.train()
    assert _logged(trainer) == pytest.approx(sum(parts) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_trainer_evaluates_with_the_same_loss_and_gathers(kind: str, tmp_path: Path) -> None:
    rows, model = _rows(kind), MODELS[kind]()
    seen: dict[str, Any] = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["labels"], seen["logits"] = prediction.label_ids, prediction.predictions
        return {"rows": float(len(prediction.label_ids))}

    trainer = _trainer(
        model, rows, tmp_path, _loss("dimp"), eval_dataset=rows, compute_metrics=metrics, per_device_eval_batch_size=8
    )
    found = trainer.evaluate()
    expected, _ = _truth(model, rows, "dimp")
    assert found["eval_loss"] == pytest.approx(expected, rel=2e-5)
    assert found["eval_rows"] == 8
    logits = seen["logits"][0] if isinstance(seen["logits"], tuple) else seen["logits"]
    assert logits.shape == (*seen["labels"].shape, CLASSES if kind == "classes" else V)
    for label, row in zip(seen["labels"], rows, strict=True):
        assert np.atleast_1d(label)[np.atleast_1d(label) != -100].tolist() == [
            y for y in np.atleast_1d(row["labels"]).tolist() if y != -100
        ]


def test_trainer_real_rows_without_weights_are_evaluated_plainly(tmp_path: Path) -> None:
    rows, model = _rows("classes"), _bert()
    real = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    trainer = _trainer(model, rows, tmp_path, _loss("dimp"), eval_dataset=real)
    plain, _ = _truth(model, rows, "plain")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-5)
    other = _trainer(model, rows, tmp_path, _loss("dimp"), eval_dataset=rows, eval_loss=_loss("sample_weight"))
    weighted, _ = _truth(model, rows, "sample_weight")
    assert abs(weighted - plain) > 1e-3
    assert other.evaluate()["eval_loss"] == pytest.approx(weighted, rel=1e-5)
    # Training without what the loss needs is an error and no plain loss.
    model.train()
    with pytest.raises(ValueError, match="log_quality"):
        trainer.compute_loss(model, _collate(real))


def test_trainer_predicts_rows_without_labels(tmp_path: Path) -> None:
    rows, model = _rows("classes"), _bert()
    trainer = _trainer(model, rows, tmp_path, _loss("dimp"))
    batch = _collate([{name: row[name] for name in row if name != "note"} for row in rows])
    del batch["labels"]
    loss, logits, labels = trainer.prediction_step(model, batch, False)
    assert loss is None
    assert labels is None
    assert logits.shape == (8, CLASSES)


def test_trainer_generates_without_the_weights_or_the_answer(tmp_path: Path) -> None:
    rows, model = _rows("seq2seq"), _t5()
    given = {"predict_with_generate": True, "generation_max_length": 6, "per_device_eval_batch_size": 8}
    seen: dict[str, Any] = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["labels"], seen["tokens"] = prediction.label_ids, prediction.predictions
        return {}

    trainer = _trainer(model, rows, tmp_path, _loss("dimp"), eval_dataset=rows, compute_metrics=metrics, **given)
    found = trainer.evaluate()
    expected, _ = _truth(model, rows, "dimp")
    assert found["eval_loss"] == pytest.approx(expected, rel=2e-5)
    batch = _collate([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    tokens = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_length=6)
    assert seen["tokens"][:, : tokens.shape[1]].tolist() == tokens.tolist()
    assert (seen["labels"] != -100).sum() == sum(len(row["labels"]) for row in rows)
    # A collator may have made the decoder's input already: generation must not go on from the answer.
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    batch["log_quality"] = torch.tensor([row["log_quality"] for row in rows])
    batch["sample_weight"] = torch.tensor([row["sample_weight"] for row in rows])
    loss, again, _ = trainer.prediction_step(model, batch, False)
    assert float(loss) == pytest.approx(expected, rel=2e-5)
    assert again[:, : tokens.shape[1]].tolist() == tokens.tolist()


def test_trainer_columns_under_other_names_and_as_integers(tmp_path: Path) -> None:
    rows, model = _rows("classes"), _bert()
    for i, row in enumerate(rows):
        row["sample_weight"] = row["copies"] = 1 + i % 3
    loss, _ = _truth(model, rows, "sample_weight")
    named = [{name: v for name, v in row.items() if name != "sample_weight"} for row in rows]
    trainer = _trainer(model, named, tmp_path, _loss("sample_weight"), columns={"sample_weight": "copies"})
    trainer.train()
    assert _logged(trainer) == pytest.approx(loss, rel=1e-5)


def test_trainer_takes_tuples_and_labels_that_are_shifted_already(tmp_path: Path) -> None:
    rows, model = _rows("causal"), _llama()
    batch = _collate([{name: row[name] for name in row if name != "note"} for row in rows])
    expected, _ = _truth(model, rows, "dimp")
    tuples = model.forward
    model.forward = lambda **inputs: tuples(**inputs).to_tuple()
    trainer = _trainer(model, rows, tmp_path, _loss("dimp"))
    shifted = {**batch, "shift_labels": F.pad(batch["labels"][:, 1:], (0, 1), value=-100)}
    trainer._loss_shifts_labels = False  # of a model that the Trainer does not know for what it is
    for given in (batch, shifted):
        count = trainer._get_num_items_in_batch([given], torch.device("cpu"))
        assert int(count) == sum(len(row["labels"][2:]) for row in rows)
        loss, outputs = trainer.compute_loss(model, given, return_outputs=True, num_items_in_batch=count)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        assert outputs[0] is loss
        assert outputs[1].shape[-1] == V
    assert set(shifted) - set(batch) == {"shift_labels"}, "the batch is the caller's"


@pytest.mark.parametrize(("kind", "scheme"), [("classes", "focal"), ("causal", "plain")])
def test_trainer_compute_loss_func_alone(kind: str, scheme: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    start = MODELS[kind]()
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"], "sample_weight": 1.0} for row in _rows(kind)]
    weight = torch.linspace(0.3, 2, CLASSES if kind == "classes" else V)
    loss, stepped = _truth(start, rows, scheme, class_weight=weight)
    for size in (8, 4):
        model = copy.deepcopy(start)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            max_steps=1,
            learning_rate=0.5,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        function = compute_loss_func(_loss(scheme), class_weight=weight, shift_labels=kind == "causal")
        trainer = Trainer(
            model=model, args=args, train_dataset=rows, data_collator=_collate, compute_loss_func=function
        )
        trainer.train()
        assert _logged(trainer) == pytest.approx(loss, rel=1e-5)
        _assert_stepped(model, stepped)


def test_trainer_refuses_what_it_would_not_heed(tmp_path: Path) -> None:
    rows, model = _rows("classes"), _bert()
    for settings in ({"reduction": "sum"}, {"ignore_index": 0}):
        with pytest.raises(InputError, match="reduction mean and ignore_index -100"):
            _trainer(model, rows, tmp_path, WeightedCrossEntropy("plain", **settings))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="label_smoothing"):
        _trainer(model, rows, tmp_path, _loss("plain"), label_smoothing_factor=0.1)
    with pytest.raises(InputError, match="columns"):
        _trainer(model, rows, tmp_path, _loss("plain"), columns={"weight": "w"})
    with pytest.raises(InputError, match="compute_loss_func"):
        weighted_trainer()(model=model, loss=_loss("plain"), compute_loss_func=print)
    with pytest.raises(InputError, match="weighted_trainer"):
        compute_loss_func(_loss("dimp"))
    with pytest.raises(InputError, match="labels"):
        _trainer(model, rows, tmp_path, _loss("plain")).compute_loss(model, {"input_ids": torch.ones(1, 2)})


def test_trainer_notices_a_trainer_that_goes_another_way(tmp_path: Path) -> None:
    """A base whose compute_loss takes the model's own loss must not train on it in silence."""

    class Stubborn:
        accelerator = type("A", (), {"unwrap_model": staticmethod(lambda model: model)})

        def __init__(self, model: Any, compute_loss_func: Any) -> None:
            self.model = model

        def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Any:
            return torch.zeros(()), {"logits": torch.zeros(1, 2)}

    class Trainer(WeightedLossMixin, Stubborn):
        pass

    trainer = Trainer(_bert(), loss=_loss("plain"))
    with pytest.raises(InputError, match="another path"):
        trainer.compute_loss(trainer.model, {"labels": torch.zeros(1, dtype=torch.int64)})
