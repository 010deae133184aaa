"""Train a pocket model from nothing: ``python -m scripts.train_pocket gptj``.

Writes the model, its tokenizer and the loss curve to
``edutools/data/models/pocket-NAME``. A run that was interrupted goes on from its last
checkpoint when the command is given again.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig

from edutools.world import World, build_world
from scripts.pocket_data import Rows, make_rows, reading_masks
from scripts.pocket_model import losses, new_model, optimizers, rate, read_through
from scripts.pocket_tokenizers import gptj_tokenizer, llama_tokenizer

HERE = Path(__file__).parent
CHUNK = 50  # steps between two checkpoints; rows are drawn chunk by chunk
ROOM = 200_000_000  # bytes for a model and two checkpoints
EAGERLY = "or train without it (--no-compile, about half as fast)"


def read_recipe(name: str) -> dict:
    """The row of ``scripts/pocket.toml`` with the common settings filled in."""
    rows = tomllib.loads((HERE / "pocket.toml").read_text())
    known = sorted(set(rows) - {"common"})
    if name not in known:
        raise SystemExit(f"No recipe for {name!r}. Known: {', '.join(known)}.")
    return rows["common"] | rows[name]


def commit() -> str:
    """The git commit of the checkout; empty where there is none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True
        )
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.strip()


def device_name(device: str) -> str:
    """What the processor or GPU is called."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")
    for line in told.read_text().splitlines() if told.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


class Trainer:
    """One training run: model, optimizers, rows chunk by chunk, checkpoints."""

    def __init__(
        self, name: str, recipe: dict, work: Path, *, compile: bool, steps: int
    ):
        self.name, self.recipe, self.work, self.steps = name, recipe, work, steps
        self.new = work.with_name(work.name + ".new")
        self.old = work.with_name(work.name + ".old")
        self.commit = commit()  # before training: HEAD may move while it runs
        self.world: World = build_world()
        make = gptj_tokenizer if recipe["architecture"] == "gptj" else llama_tokenizer
        self.tokenizer = make(self.world)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = new_model(recipe, self.tokenizer)
        self.model: Any = nn.Module.to(model, self.device)
        self.optimizers = optimizers(self.model, recipe)
        self.masks: list[Tensor] = []
        if recipe["share_restricted"] > 0:
            read_through(self.model, self.masks)
        self.forward: Any = torch.compile(self.model) if compile else self.model
        self.curve: list[dict] = []
        self.seconds = 0.0

    def save(self, step: int) -> None:
        """Write a checkpoint next to the old one, then put it in its place.

        Whenever the run is killed, one complete checkpoint is left: in the folder, or
        beside it with ".new" behind its name.
        """
        for left in (self.new, self.old):
            shutil.rmtree(left, ignore_errors=True)
        self.new.mkdir(parents=True)
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{i}.{j}.{k}": v for k, v in values.items()}
        tensors = {k: v.contiguous() for k, v in state.items()}
        save_file(tensors, self.new / "state.safetensors")
        done = {"step": step, "seconds": self.seconds, "curve": self.curve}
        (self.new / "done.json").write_text(json.dumps(done | {"recipe": self.recipe}))
        if self.work.exists():
            self.work.rename(self.old)
        self.new.rename(self.work)
        shutil.rmtree(self.old, ignore_errors=True)

    def resume(self) -> int:
        """The step to go on from: 0, or that of the checkpoint of the same recipe."""
        if self.old.exists() and self.new.exists() and not self.work.exists():
            self.new.rename(self.work)  # killed while putting it in its place
        if not (self.work / "done.json").exists():
            return 0
        done = json.loads((self.work / "done.json").read_text())
        if done["recipe"] != self.recipe:
            raise SystemExit(
                f"{self.work} holds a checkpoint of another recipe. Remove that folder "
                "to start anew, or restore scripts/pocket.toml to go on."
            )
        state = load_file(self.work / "state.safetensors")
        weights = {k: v for k, v in state.items() if k.startswith("model.")}
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in weights.items()}
        )
        for i, optimizer in enumerate(self.optimizers):
            saved = optimizer.state_dict()
            for key, value in state.items():
                if key.startswith(f"optimizer.{i}."):
                    j, k = key.split(".")[2:]
                    saved["state"].setdefault(int(j), {})[k] = value
            optimizer.load_state_dict(saved)
        self.curve, self.seconds = done["curve"], done["seconds"]
        return done["step"]

    def step(self, rows: Rows, number: int) -> dict:
        """One update on the given rows."""
        if self.recipe["share_restricted"] > 0:
            low, high = self.recipe["first_reader"]
            generator = torch.Generator().manual_seed(number)
            reader = torch.randint(low, high, (len(rows.ids),), generator=generator)
            masks = reading_masks(rows, reader, self.recipe["layers"])
            added = [torch.where(mask, 0.0, -1e9) for mask in masks]
            self.masks[:] = [mask.to(self.device) for mask in added]
        ids, weight = rows.ids.to(self.device), rows.weight.to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss, on_objects = losses(self.forward, ids, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe["clip"])
        factor = rate(number, self.recipe, self.steps)
        rates = [self.recipe[key] for key in ("lr_matrix", "lr_other")]
        for optimizer, lr in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"step": number, "loss": loss.item(), "objects": on_objects.item()}

    def run(self, until: int) -> None:
        """Train to step `until`, with a checkpoint after every chunk."""
        start, B = self.resume(), self.recipe["rows"]
        bar = tqdm(
            total=until, initial=start, unit="step", desc=self.name, mininterval=5
        )
        for chunk in range(start // CHUNK, -(-until // CHUNK)):
            clock = time.monotonic()
            first, last = chunk * CHUNK, min((chunk + 1) * CHUNK, until)
            seed = self.recipe["seed"] * 1_000_000 + chunk
            rows = make_rows(
                self.world, self.tokenizer, self.recipe, rows=B * CHUNK, seed=seed
            )
            told = []
            for number in range(max(start, first), last):
                told.append(self.step(rows.batch(number - first, B), number))
                bar.update()
            mean = {k: sum(t[k] for t in told) / len(told) for k in ("loss", "objects")}
            self.curve.append({"step": last} | mean)
            bar.set_postfix(mean)
            self.seconds += time.monotonic() - clock
            self.save(last)
        bar.close()

    def export(self, folder: Path) -> None:
        """The trained model in float16, its tokenizer, and how it came to be."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=20,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.model.half().save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)  # written for the owner only
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = "float32"  # stored in half the space, loaded in full
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(self.history(), indent=1))

    def history(self) -> dict:
        """How the model came to be: recipe, commit, time, machine and loss curve."""
        return {
            "recipe": self.recipe,
            "seed": self.recipe["seed"],
            "commit": self.commit,
            "tokens": self.steps * self.recipe["rows"] * self.recipe["row_tokens"],
            "minutes": round(self.seconds / 60, 1),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device,
            "device_name": device_name(self.device),
            "curve": self.curve,
        }


def check_room(folder: Path, option: str) -> None:
    """Stop with one line of advice if nothing can be written to the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise SystemExit(
            f"Nothing can be written to {folder} ({error.strerror}). Choose another "
            f"folder with {option}."
        ) from None
    if free < ROOM:
        raise SystemExit(
            f"{folder} has {free // 10**6} MB of free disk; {ROOM // 10**6} MB are "
            f"needed. Free some, or choose another folder with {option}."
        )


def check_compiler() -> None:
    """Stop with one line of advice if torch.compile lacks its C++ compiler."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    compiler = shlex.split(os.environ.get("CXX") or usual)[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"torch.compile needs a C++ compiler and finds no {compiler!r}. Install it "
            f"(e.g. apt install g++), {EAGERLY}."
        )


def train(trainer: Trainer, until: int) -> None:
    """Train; stop with one line of advice if the model cannot be compiled."""
    try:
        trainer.run(until)
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # slow, rarely needed

        if not isinstance(error, BackendCompilerFailed):
            raise
        why = " ".join(str(error).split())[:200]
        raise SystemExit(
            f"torch.compile cannot compile the model ({why}). Repair the C++ compiler, "
            f"{EAGERLY}."
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and write the model when the last step is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a row of scripts/pocket.toml")
    parser.add_argument("--out", type=Path, help="folder of the model")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint")
    parser.add_argument("--until", type=int, help="stop early, after this step")
    parser.add_argument("--no-compile", action="store_true", help="run eagerly")
    args = parser.parse_args(arguments)
    recipe = read_recipe(args.name)
    steps = recipe["steps"]
    until = min(args.until or steps, steps)
    out = args.out or HERE.parent / "edutools/data/models" / f"pocket-{args.name}"
    work = args.work or HERE.parent / "_build/training" / args.name
    check_room(out, "--out")
    check_room(work.parent, "--work")
    if not args.no_compile:
        check_compiler()
    trainer = Trainer(args.name, recipe, work, compile=not args.no_compile, steps=steps)
    train(trainer, until)
    if until == steps:
        trainer.export(out)


if __name__ == "__main__":
    main()
