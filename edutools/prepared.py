"""What is computed of a second moment once, and used for every edit after that."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from edutools.factored import Spectrum, spectrum
from edutools.linear import Cholesky, Shifted, cholesky
from edutools.precision import chosen_precision, home

__all__ = ["Prepared"]


@dataclass(frozen=True, eq=False, repr=False)
class Prepared:
    """C = total / count, with its factors and its spectrum as far as they were needed.

    They are kept where they were made, one for each device and precision, so nothing is
    computed or moved twice.

    Args:
        total: the sum of k kᵀ, in float64.
        count: over how many tokens.
        name: what to call C in messages.
        device: where to compute; where the total is, if not given.
        precision: of factors, see `linear.cholesky`.

    Book: sec-second-moment

    >>> C = Prepared(4 * torch.eye(2, dtype=torch.float64), 1, "C")
    >>> C.factor().lower.diagonal().tolist(), C.factor() is C.on("cpu").factor()
    ([2.0, 2.0], True)
    """

    total: Float[Tensor, "d d"]
    count: int
    name: str
    device: torch.device | None = None
    precision: str = "auto"
    _made: dict[tuple, Cholesky | Spectrum] = field(default_factory=dict)

    def value(self) -> Float[Tensor, "d d"]:
        """C itself, made anew.

        Raises:
            ValueError: if no token has been counted.
        """
        return self._counted().dense()

    def on(self, device: torch.device | str, precision: str = "auto") -> "Prepared":
        """The same, to be computed on another device; what is made is shared.

        Raises:
            ValueError: if the precision is unknown.
        """
        chosen_precision(device, precision)
        place = torch.device(device)
        return Prepared(self.total, self.count, self.name, place, precision, self._made)

    def factor(self, shift: float = 0.0) -> Cholesky:
        """The Cholesky factor of C + shift·I.

        Raises:
            ValueError: if it is not positive definite (too few tokens).
        """
        place = self._place
        key = ("factor", place, chosen_precision(place, self.precision), shift)
        if key not in self._made:
            self._made[key] = cholesky(
                self._counted(shift),
                self.name,
                device=place,
                precision=self.precision,
            )
        found = self._made[key]
        assert isinstance(found, Cholesky)
        return found

    def spectrum(self) -> Spectrum:
        """The eigenvalues and eigenvectors of C, in float64 whatever the precision."""
        key = ("spectrum", home(self._place))
        if key not in self._made:
            source = self._counted().to(key[1])
            self._made[key] = spectrum(source.dense(), self.name)
        found = self._made[key]
        assert isinstance(found, Spectrum)
        return found

    def _counted(self, shift: float = 0.0) -> Shifted:
        if self.count == 0:
            raise ValueError(
                f"{self.name} counts no tokens, so it has no mean. Measure it on texts "
                "that are not empty."
            )
        return Shifted(self.total, float(self.count), float(shift))

    @property
    def _place(self) -> torch.device:
        return self.total.device if self.device is None else self.device
