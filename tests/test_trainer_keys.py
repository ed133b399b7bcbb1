"""What the keys of trainer=, debug= and the weights of classes do, each in its smallest setting."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from eomt_exp.contracts import VOID, LabelledImage, UserError
from eomt_exp.data.wrapped_set import FirstImages
from eomt_exp.engine.device import check_device
from eomt_exp.engine.throughput import Throughput
from eomt_exp.engine.weight_average import WeightAverage
from eomt_exp.losses.mask_classification import MaskClassification
from eomt_exp.paths import asset_dir
from eomt_exp.schema import TrainerConfig
from eomt_exp.tasks.class_weights import weigh_classes
from eomt_exp.tracking.metrics_file import read_journal
from tests import planted, test_spatial_eomt
from tests.command_line import SMALL, metrics_of, mlflow_client, only_run, run
from tests.test_freezing import a_target
from tests.test_model import with_head
from tests.test_scalable_vit import images_of


def trainer(option: str, *typed: str) -> TrainerConfig:
    """The settings of trainer=option, without the time that all other groups take."""
    recipe = {"semantic_epochs": 1, "batch_size": 1, "validate_every": 0}
    node = OmegaConf.merge({"recipe": recipe}, compose(f"trainer/{option}")).trainer
    plain = OmegaConf.merge(
        OmegaConf.to_container(node, resolve=True), OmegaConf.from_dotlist([*typed])
    )
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainerConfig), plain))  # type: ignore[return-value]


def test_presets_ask_for_what_they_are_for(hydra_at_conf: None, monkeypatch) -> None:
    for processes, cuda, overrides, message in (
        ("1", False, "default", None),
        ("1", False, "cpu", None),
        ("1", True, "gpu precision=fp16", None),
        ("2", False, "ddp_cpu", None),
        ("2", True, "ddp", None),
        ("2", True, "fsdp", None),
        ("1", False, "gpu", "torch finds no GPU: type trainer.device=auto"),
        ("1", True, "cpu precision=fp16", "fp16 needs a GPU"),
        ("1", False, "ddp_cpu", "this is one: type torchrun --nproc_per_node 2"),
        ("1", True, "fsdp", "trainer.parallel=fsdp is for several processes"),
        ("2", True, "fsdp device=cpu", "fsdp needs GPUs"),
        ("2", True, "fsdp ema=0.9", r"trainer\.ema=null"),
    ):
        monkeypatch.setenv("WORLD_SIZE", processes)
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        settings = trainer(*overrides.split())
        if message is None:
            check_device(settings)
        else:
            with pytest.raises(UserError, match=message):
                check_device(settings)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # by accelerate launch
    with pytest.raises(UserError, match="--multi_gpu"):
        check_device(trainer("default"))


@pytest.mark.parametrize("option", sorted(p.stem for p in asset_dir("conf").glob("debug/*.yaml")))
def test_debug_presets_set_keys_that_there_are(hydra_at_conf: None, option: str) -> None:
    cfg = compose("config", overrides=[f"debug={option}", "hydra.run.dir=unused"])
    OmegaConf.to_object(cfg.trainer)
    OmegaConf.to_object(cfg.data)


def test_one_process_of_accelerate_launch_that_was_to_be_two_is_refused(capfd, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    outcome = run(capfd, "+experiment=semantic")
    assert outcome.code == 2
    assert "torchrun --nproc_per_node 2 -m eomt_exp" in outcome.err


def test_recomputed_blocks_have_the_same_gradients() -> None:
    gradients, calls = [], []
    for recomputes in (False, True):
        torch.manual_seed(0)
        model = with_head().train()
        block = model.encoder.block
        model.encoder.block = lambda *given, block=block: calls.append(given) or block(*given)  # type: ignore[method-assign]
        if recomputes:
            model.checkpoint_blocks()
        terms = MaskClassification(num_points=64)(model(images_of()), [a_target()] * 2)
        torch.stack(list(terms.values())).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert len(calls) == 4 + 2 * 4
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][n]) for n, gradient in gradients[0].items())
    with pytest.raises(UserError, match=r"SpatialEoMT.*gradient_checkpointing=false"):
        test_spatial_eomt.with_head().checkpoint_blocks()


def averaged(model: nn.Module, decay: float) -> tuple[WeightAverage, dict[str, Any]]:
    hooks: dict[str, Any] = {}
    accelerator: Any = SimpleNamespace(
        is_main_process=True,
        register_save_state_pre_hook=lambda hook: hooks.update(save=hook),
        register_load_state_pre_hook=lambda hook: hooks.update(load=hook),
    )
    return WeightAverage(accelerator, model, decay), hooks


def test_the_average_forgets_as_its_formula_says_and_travels_with_states(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    average, hooks = averaged(model, decay=0.5)
    start = wanted = float(model.weight.detach())
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (3, 4 / 13), (20, 0.5)):  # 21 / 30 is above 0.5
        model.weight.data.fill_(step)
        average.update(step)
        wanted += (1 - decay) * (step - wanted)
    assert start != wanted
    with average.in_force():
        assert float(model.weight.detach()) == pytest.approx(wanted)
    assert float(model.weight.detach()) == 20
    hooks["save"](None, None, str(tmp_path))
    other, others = averaged(nn.Linear(1, 1), decay=0.5)
    other.average.pop("bias")
    others["load"](None, str(tmp_path))
    assert torch.equal(other.average["weight"], average.average["weight"])


class Labels:
    """Three images that show classes a and b, a and c, and a alone."""

    class_names, num_classes = ("a", "b", "c", "d"), 4

    def __init__(self) -> None:
        self.seen = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> LabelledImage:
        self.seen += 1
        labels = np.full((2, 2), VOID, np.uint8)
        labels[0] = ([0, 1], [0, 2], [0, 0])[index]
        return LabelledImage(np.zeros((2, 2, 3), np.uint8), labels, labels * 0, str(index))


@pytest.mark.parametrize(
    ("given", "weights"),
    [("auto", [1 / 3, 1, 1, 1]), ({"c": 5, "a": 0.5}, [0.5, 1, 5, 1]), (None, [1, 1, 1, 1])],
)
def test_classes_weigh_in_the_class_term_what_was_asked(given: Any, weights: list[float]) -> None:
    loss, images = MaskClassification(num_points=64, class_weights=given), Labels()
    weigh_classes({"mask_classification": loss}, images, 0)  # type: ignore[arg-type]
    assert images.seen == (3 if given == "auto" else 0)
    targets = planted.two_targets()
    output = planted.saying(targets, planted.ORDER, num_outputs=planted.K + 1)
    output = output._replace(class_logits=planted.random_output().class_logits)
    states = torch.full((planted.B, planted.Q), planted.K)
    for image, target in enumerate(targets):
        states[image, planted.ORDER[image]] = target.labels
    wanted = F.cross_entropy(
        output.class_logits.transpose(1, 2), states, torch.tensor([*weights, 0.1])
    )
    assert torch.allclose(loss(output, targets)["class"], 2.0 * wanted)


def test_class_weights_that_cannot_be_are_refused() -> None:
    for given in ("balanced", {"a": 0.0}):
        with pytest.raises(UserError, match="class_weights must be null, auto, or names"):
            MaskClassification(class_weights=given)
    loss = MaskClassification(class_weights={"e": 1.0})
    with pytest.raises(UserError, match="names e; the classes are a, b, c, d"):
        weigh_classes({"mask_classification": loss}, Labels(), 0)  # type: ignore[arg-type]


def test_a_limited_set_has_the_first_images_and_says_what_it_is() -> None:
    images = planted_set()
    few = FirstImages(images, 2)
    assert [item.name for item in few] == ["0", "1"]
    assert len(FirstImages(images, 9)) == 3
    assert (few.num_classes, few.expected_images) == (4, None)


def planted_set() -> Any:
    images: Any = Labels()
    for name in ("class_categories", "reads_files", "expected_images", "skipped",
                 "component_sizes", "labels_anomalies"):  # fmt: skip
        setattr(images, name, None)
    return images


def test_waiting_for_data_is_told_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)

    def batches() -> Iterator[int]:
        for index in range(4):
            clock.now += 1.0
            yield index

    speed = Throughput(images_per_step=8, device=torch.device("cpu"))
    clock.now = 100.0  # before an epoch
    for index in speed.waits(batches()):
        clock.now += 3.0
        if index == 1:
            found = speed.read(steps=2)
    assert found["train/images_per_second"] == pytest.approx(2.0)
    assert found["train/data_wait"] == pytest.approx(0.25)
    rss = psutil.Process().memory_info().rss / 1e9
    assert 0.5 * rss < found["train/peak_memory_gb"] < 100
    assert speed.read(steps=2)["train/images_per_second"] == pytest.approx(2.0)


TINY = (*SMALL, "+experiment=semantic", "benchmark=none", "evaluator.known_classes=false",
        "trainer.log_every=2")  # fmt: skip
OBSERVED = ("trainer.ema=0.9", "trainer.gradient_checkpointing=true", "trainer.profile_steps=2")


@pytest.mark.slow
def test_a_run_with_an_average_resumes_exactly_and_leaves_a_trace(outputs: Path, capfd) -> None:
    from safetensors.torch import load_file

    typed = (*TINY, *OBSERVED, "tracking=none", "trainer.epochs=3", "debug=fast")
    assert run(capfd, *typed).code == 0
    folder = only_run(outputs, "semantic")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name", "").startswith("ProfilerStep#") for event in events) == 2
    keys = read_journal(folder / "metrics.jsonl")[0].keys()
    assert keys >= {"train/total", "train/grad_norm", "train/images_per_second", "lr/head",
                    "train/data_wait", "train/peak_memory_gb"}  # fmt: skip
    whole = load_file(folder / "model.safetensors")
    live = load_file(max((folder / "checkpoints").glob("step-*")) / "model.safetensors")
    assert any(not torch.equal(whole[name], live[name]) for name in live)

    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(max((folder / "checkpoints").glob("step-*")))
    outcome = run(capfd, *typed, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    assert "going on with" in outcome.out
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.slow
def test_25_jobs_in_one_process_leave_nothing_behind(outputs: Path, capfd) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from safetensors.torch import load_file

    process, sizes = psutil.Process(), []
    for index in range(25):
        precision = ("no", "bf16")[index % 2]  # which Accelerate's state would keep
        outcome = run(capfd, *TINY, f"seed={index % 24}", "data.train.length=4",
                      f"trainer.precision={precision}", f"name=job{index}")  # fmt: skip
        assert outcome.code == 0, outcome.err
        for state in (AcceleratorState, GradientState, PartialState):
            assert not state._shared_state, state
        sizes.append((process.num_fds(), threading.active_count(), process.memory_info().rss))
    (files, threads, memory), (last_files, last_threads, last_memory) = sizes[4], sizes[-1]
    assert last_files <= files
    assert last_threads <= threads
    assert last_memory - memory < 100e6, [size[2] for size in sizes]
    client = mlflow_client(outputs)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [one.info.status for one in found] == ["FINISHED"] * 25
    first, last = (only_run(outputs, f"job{index}") for index in (0, 24))
    weights, same = (load_file(folder / "model.safetensors") for folder in (first, last))
    assert all(torch.equal(same[name], value) for name, value in weights.items())
    assert metrics_of(first)["metrics"] == metrics_of(last)["metrics"]
    assert not [name for name in os.environ if name.startswith("ACCELERATE_")]
