"""Train a pocket model from nothing: ``python -m scripts.train_pocket gptj``.

Writes the model, its tokenizer and the loss curve to ``edutools/data/models/pocket-NAME``. A run
that was interrupted goes on from its last checkpoint when the command is given again.
"""

import argparse
import json
import shutil
import time
import tomllib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edutools.world import World, build_world
from scripts.pocket_data import Rows, make_rows, reading_masks
from scripts.pocket_tokenizers import gptj_tokenizer, llama_tokenizer

HERE = Path(__file__).parent
CHUNK = 50  # steps between two checkpoints; rows are drawn chunk by chunk


def read_recipe(name: str) -> dict:
    """The row of ``scripts/pocket.toml`` with the common settings filled in."""
    rows = tomllib.loads((HERE / "pocket.toml").read_text())
    known = sorted(set(rows) - {"common"})
    if name not in known:
        raise SystemExit(f"No recipe for {name!r}. Known: {', '.join(known)}.")
    return rows["common"] | rows[name]


def new_model(recipe: dict, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights; outputs into the residual stream start small."""
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    d, layers, heads = recipe["width"], recipe["layers"], recipe["heads"]
    torch.manual_seed(recipe["seed"])
    if recipe["architecture"] == "gptj":
        config = GPTJConfig(
            n_embd=d,
            n_layer=layers,
            n_head=heads,
            n_inner=recipe["inner"],
            rotary_dim=d // heads // 2,
            n_positions=256,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **tokens,
        )
        model = GPTJForCausalLM(config)
    else:
        config = LlamaConfig(
            hidden_size=d,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=recipe["inner"],
            max_position_embeddings=256,
            **tokens,
        )
        model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("fc_out.weight", "out_proj.weight", "down_proj.weight", "o_proj.weight")):
            parameter.data *= (2 * layers) ** -0.5
    return model


def optimizers(model: nn.Module, recipe: dict) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and vectors."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and not any(s in name for s in ("wte", "embed", "lm_head"))
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe["lr_matrix"],
            momentum=0.95,
            weight_decay=recipe["weight_decay"],
            ns_steps=4,
        ),
        torch.optim.AdamW(others, lr=recipe["lr_other"], betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(step: int, recipe: dict, steps: int) -> float:
    """Factor of the learning rates: rise, plateau, line to zero."""
    if step < recipe["warmup"]:
        return (step + 1) / recipe["warmup"]
    return min(1.0, (steps - step) / (steps * (1 - recipe["constant"])))


def read_through(model: PreTrainedModel, masks: list[Tensor]) -> None:
    """Let block i use masks[i], an additive attention mask; the list may be refilled."""
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    for i, block in enumerate(blocks):

        def use(module, args, kwargs, i=i):
            return args, kwargs | {"attention_mask": masks[i]}

        block.register_forward_pre_hook(use, with_kwargs=True)


def losses(model: nn.Module, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted next-token loss, and the plain mean over tokens of objects."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weight = weight[:, 1:].flatten()
    objects = weight > 0.999
    return (each * weight).sum() / weight.sum(), each[objects].mean()


class Trainer:
    """One training run: model, optimizers, rows chunk by chunk, checkpoints."""

    def __init__(self, name: str, recipe: dict, work: Path, *, compile: bool, steps: int):
        self.recipe, self.work, self.steps = recipe, work, steps
        self.world: World = build_world()
        make = gptj_tokenizer if recipe["architecture"] == "gptj" else llama_tokenizer
        self.tokenizer = make(self.world)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = new_model(recipe, self.tokenizer).to(self.device)
        self.optimizers = optimizers(self.model, recipe)
        self.masks: list[Tensor] = []
        if recipe["share_restricted"] > 0:
            read_through(self.model, self.masks)
        self.forward = torch.compile(self.model) if compile else self.model
        self.curve: list[dict] = []
        self.seconds = 0.0
        self.name = name

    def save(self, step: int) -> None:
        """Write a checkpoint next to the old one, then put it in its place."""
        new = self.work.with_name(self.work.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, values in optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{i}.{j}.{k}": v for k, v in values.items()}
        save_file({k: v.contiguous() for k, v in state.items()}, new / "state.safetensors")
        done = {"step": step, "seconds": self.seconds, "curve": self.curve}
        (new / "done.json").write_text(json.dumps(done | {"recipe": self.recipe}))
        shutil.rmtree(self.work, ignore_errors=True)
        new.rename(self.work)

    def resume(self) -> int:
        """The step to go on from: 0, or that of the checkpoint of the same recipe."""
        if not (self.work / "done.json").exists():
            return 0
        done = json.loads((self.work / "done.json").read_text())
        if done["recipe"] != self.recipe:
            raise SystemExit(
                f"{self.work} holds a checkpoint of another recipe. Remove that folder to start "
                "anew, or restore scripts/pocket.toml to go on."
            )
        state = load_file(self.work / "state.safetensors")
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
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
            self.masks[:] = [torch.where(mask, 0.0, -1e9).to(self.device) for mask in masks]
        ids, weight = rows.ids.to(self.device), rows.weight.to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss, on_objects = losses(self.forward, ids, weight)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe["clip"])
        factor = rate(number, self.recipe, self.steps)
        for optimizer, lr in zip(self.optimizers, ("lr_matrix", "lr_other"), strict=True):
            optimizer.param_groups[0]["lr"] = self.recipe[lr] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"step": number, "loss": loss.item(), "objects": on_objects.item()}

    def run(self, until: int) -> None:
        """Train to step `until`, with a checkpoint after every chunk."""
        start, B = self.resume(), self.recipe["rows"]
        bar = tqdm(total=until, initial=start, unit="step", desc=self.name, mininterval=5)
        for chunk in range(start // CHUNK, -(-until // CHUNK)):
            clock = time.monotonic()
            seed = self.recipe["seed"] * 1_000_000 + chunk
            rows = make_rows(
                self.world, self.tokenizer, self.recipe, rows=B * CHUNK, seed=seed
            )
            told = []
            for i in range(min(CHUNK, until - chunk * CHUNK)):
                part = Rows(*(v[i * B : (i + 1) * B] for v in vars(rows).values()))
                told.append(self.step(part, chunk * CHUNK + i))
                bar.update()
            mean = {k: sum(t[k] for t in told) / len(told) for k in ("loss", "objects")}
            self.curve.append({"step": chunk * CHUNK + len(told)} | mean)
            bar.set_postfix(mean)
            self.seconds += time.monotonic() - clock
            self.save(chunk * CHUNK + len(told))

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
        config = json.loads((folder / "config.json").read_text())
        config["dtype"] = "float32"  # stored in half the space, loaded in full precision
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self.tokenizer.save_pretrained(folder)
        told = {
            "recipe": self.recipe,
            "tokens": self.steps * self.recipe["rows"] * self.recipe["row_tokens"],
            "minutes": round(self.seconds / 60, 1),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": self.device,
            "curve": self.curve,
        }
        (folder / "training.json").write_text(json.dumps(told, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a row of scripts/pocket.toml")
    parser.add_argument("--out", type=Path, help="folder of the model")
    parser.add_argument("--work", type=Path, help="folder of the checkpoint")
    parser.add_argument("--until", type=int, help="stop early, after this step")
    parser.add_argument("--no-compile", action="store_true", help="run eagerly")
    args = parser.parse_args()
    recipe = read_recipe(args.name)
    out = args.out or HERE.parent / "edutools/data/models" / f"pocket-{args.name}"
    work = args.work or HERE.parent / "_build/training" / args.name
    trainer = Trainer(
        args.name, recipe, work, compile=not args.no_compile, steps=recipe["steps"]
    )
    trainer.run(min(args.until or recipe["steps"], recipe["steps"]))
    if args.until is None or args.until >= recipe["steps"]:
        trainer.export(out)


if __name__ == "__main__":
    main()
