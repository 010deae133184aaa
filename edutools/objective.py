"""The loss of the value search: does the model say the target when δ is added?

Axes: n facts · rows contexts and one essence prompt · tokens · window those of them
that δ can reach · answer target tokens.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from edutools.arch import n_layers
from edutools.hooks import capture
from edutools.keyvalue import ValueSearch, site_name
from edutools.rows import SearchRows
from edutools.scoring import final_logits, run
from edutools.suffix import Tail, record_tail

__all__ = ["PARTS", "Objective", "Start"]

PARTS = ("loss", "nll", "kl", "decay", "probability")


@dataclass(frozen=True, eq=False)
class Start:
    """What the facts look like before anything is added.

    Args:
        initial: state at the site, bare prompt, subject's last token.
        radius: how long δ may become.
        essence: log-probabilities of the essence prompt's next word.
        above: the blocks above the layer, with the states that reach them: δ changes
            nothing below, and nothing that stands before the subject's last token.
        recorded: which of these states belongs to each row.

    Book: sec-rome-value
    """

    initial: Float[Tensor, "n d_out"]
    radius: Float[Tensor, " n"]
    essence: Float[Tensor, "n vocab"]
    above: Tail
    recorded: Int[Tensor, "n rows"]

    def pick(self, keep: Int[Tensor, " kept"]) -> "Start":
        """The same for some of the facts."""
        return type(self)(
            initial=self.initial[keep.to(self.initial.device)],
            radius=self.radius[keep.to(self.radius.device)],
            essence=self.essence[keep.to(self.essence.device)],
            above=self.above,
            recorded=self.recorded[keep],
        )


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of `ValueSearch` for a model and a layer.

    Args:
        model: is run, never changed.
        layer: where δ is added; only the blocks above it are run in each step, for the
            tokens from the subject's last one on (see `edutools.suffix.Tail`). What a
            block returns is a sum, so that δ on its MLP's output is δ on what the next
            block receives.
        site: name of the module whose output, with δ, is the value.
        block: name of the block around it.
        last: name of the last block, whose output the head reads.
        search: weights of the parts of the loss.

    Book: sec-rome-value
    """

    model: PreTrainedModel
    layer: int
    site: str
    block: str
    last: str
    search: ValueSearch

    @classmethod
    def at(cls, model: PreTrainedModel, layer: int, search: ValueSearch) -> "Objective":
        """The loss for a value at this layer."""
        return cls(
            model=model,
            layer=layer,
            site=site_name(model, layer, search.site),
            block=site_name(model, layer, "block"),
            last=site_name(model, n_layers(model) - 1, "block"),
            search=search,
        )

    @torch.no_grad()
    def start(self, rows: SearchRows) -> Start:
        """Measure the state, its norm and the essence before the search."""
        n, per_fact, _ = rows.ids.shape
        names = {self.site, self.block, self.last}
        changed, mask = rows.subject.flatten(), rows.mask.flatten(0, 1)
        recorded = record_tail(self.model, self.layer + 1, changed=changed, mask=mask)
        with (
            recorded as above,
            capture(self.model, names, stop=True) as seen,
        ):
            run(seen, self.model, rows.ids.flatten(0, 1), mask)

        def at(name: str, row: int, place: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
            h = seen[name].unflatten(0, (n, -1))  # (n, rows, tokens, d_out)
            return h[torch.arange(n), row, place.to(h.device)]

        initial = at(self.site, 0, rows.subject[:, 0]).float()
        near = at(self.block, 0, rows.subject[:, 0]).float()
        near = initial if self.search.clamp_to == "site" else near.to(initial.device)
        logits = final_logits(self.model, at(self.last, -1, rows.essence)).float()
        return Start(
            initial=initial,
            radius=self.search.clamp * near.norm(dim=1),
            essence=logits.log_softmax(-1),
            above=above,
            recorded=torch.arange(n * per_fact).view(n, per_fact),
        )

    def losses(
        self, rows: SearchRows, start: Start, delta_h: Float[Tensor, "n d_out"]
    ) -> dict[str, Float[Tensor, " n"]]:
        """Every part of the loss of every fact, with its δ added at its subject.

        Beside them 'said': in which share of the contexts every token of the target is
        the model's first choice.
        """
        logp, first, essence = self.predictions(rows, start, delta_h)
        valid = rows.valid.to(logp.device)
        counts = valid.sum(1)[:, None]
        nll = -(logp * valid[:, None]).sum(2) / counts  # (n, contexts)
        kl = (essence.exp() * (essence - start.essence)).sum(1)  # (n,)
        power = 1 if self.search.decay == "norm" else 2
        decay = delta_h.norm(dim=1) ** power / start.initial.norm(dim=1) ** 2
        parts = {
            "nll": nll.mean(1),
            "kl": self.search.kl * kl,
            "decay": self.search.weight_decay * decay.to(kl.device),
        }
        told = {"loss": sum(parts.values()), "probability": (-nll).exp().mean(1)}
        said = (first | ~valid[:, None]).all(2).float().mean(1)  # (n,)
        return parts | told | {"said": said}

    def predictions(
        self, rows: SearchRows, start: Start, delta_h: Float[Tensor, "n d_out"]
    ) -> tuple[
        Float[Tensor, "n contexts answer"],
        Bool[Tensor, "n contexts answer"],
        Float[Tensor, "n vocab"],
    ]:
        """Log-probabilities of the target's tokens, whether each is the first choice,
        and log-probabilities of any essence word."""
        after = self._last(rows, start, delta_h)  # (n, rows, window, d_out)
        n, per_fact = after.shape[:2]
        each = torch.arange(n, device=after.device)
        context = torch.arange(per_fact - 1, device=after.device)[None, :, None]
        starts = start.above.starts[start.recorded]  # (n, rows)
        places = (rows.positions - starts[:, :-1, None]).clamp(min=0).to(after.device)
        asked = after[each[:, None, None], context, places]  # (n, contexts, answer, d)
        at_end = (rows.essence - starts[:, -1]).to(after.device)  # (n,)
        same = after[each, per_fact - 1, at_end]  # (n, d_out)
        flat = torch.cat([asked.flatten(0, 2), same])
        logp = final_logits(self.model, flat).float().log_softmax(-1)
        words = logp[:-n].unflatten(0, asked.shape[:3])  # (n, contexts, answer, vocab)
        labels = rows.labels[:, None, :, None].to(logp.device)
        labels = labels.expand(*words.shape[:3], 1)
        first = words.argmax(-1) == labels[..., 0]
        return words.gather(-1, labels)[..., 0], first, logp[-n:]

    def _last(
        self, rows: SearchRows, start: Start, delta_h: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, "n rows window d_out"]:
        """States after the last block when δ is added to what the layer returns."""
        n, per_fact, _ = rows.ids.shape
        shift = delta_h.repeat_interleave(per_fact, 0)  # (n·rows, d_out)
        recorded = start.recorded.flatten()
        where = rows.subject.flatten() - start.above.starts[recorded]
        h = start.above.begin(recorded)  # (n·rows, window, d_out)
        at = (torch.arange(len(h), device=h.device), where.to(h.device))
        h = h.index_put(at, (h[at].float() + shift.to(h.device)).to(h.dtype))
        after = start.above.run(h, self.layer + 1, rows=recorded)
        return after.unflatten(0, (n, per_fact))
