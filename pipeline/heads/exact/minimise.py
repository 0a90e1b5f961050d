"""Many softmax regressions on the same rows, minimised side by side by preconditioned L-BFGS.

Knows tensors only. K problems of C classes in r coordinates are arrays (K, C, r + 1), the intercept last; their logits
are (K, C, N), so that one product with the rows serves all problems and sums over classes run along memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from pipeline.heads.eigen import eigh_of_many
from pipeline.heads.staging import on_device, on_gpu

MEMORY = 10  # corrections that L-BFGS remembers at most
MEMORY_AT_FIRST = 2  # far from the optimum the curvature changes so fast that old corrections hold steps back
STEPS_PER_CORRECTION = 5  # after which one more is remembered
COUPLING_STEPS = 4  # after which the coupling of the classes is looked at anew
COUPLING_FLOOR = 1e-6  # of the strongest
SLOPE_KEPT = 0.3  # a step is long enough where the slope along it has fallen to this share
TRIALS = 20  # of a step's length
PIECE_BYTES = 1 << 20  # of logits that are worked on at once, so that they stay in the processor's cache
GPU_PIECE_BYTES = 128 << 20  # ... and by a GPU, which computes that in the time that it takes to ask for it
LEAVE_SHARE = 8  # converged problems leave when they are one in this many: leaving copies the arrays
CURVATURE_FLOOR = 1e-12  # a class that no row is unsure of has no curvature; a step must still be finite
PATIENCE = 100  # iterations without a better gradient after which rounding has the last word


class Product(Protocol):
    """The rows (N, r), as products need them."""

    def forward(self, theta: torch.Tensor) -> torch.Tensor:
        """(P, N) for weights (P, r)."""

    def backward(self, residual: torch.Tensor) -> torch.Tensor:
        """(P, r) for residuals (P, N)."""


@dataclass(frozen=True, eq=False)
class Objective:
    """Problem k: ``Σ_i w_i CE(θ u_i + b, y_i) + λ_k/2 ‖θ‖²`` with w the row ``weighting[k]`` of ``weights``."""

    product: Product
    variance: torch.Tensor  # (r,) weighted mean square of each coordinate
    y: torch.Tensor  # (N,) int64
    n_classes: int
    weights: torch.Tensor  # (F, N), each row sums to 1
    weighting: torch.Tensor  # (K,) int64
    penalty: torch.Tensor  # (K,) float64

    def select(self, kept: torch.Tensor) -> Objective:
        """The same for the problems at the places ``kept``."""
        return replace(self, weighting=self.weighting[kept], penalty=self.penalty[kept])

    def weights_of(self, piece: slice) -> torch.Tensor:
        """Each problem's weights of some rows, (K, n); (1, n) where all are weighed alike."""
        some = self.weights[:, piece]
        return some[self.weighting] if len(self.weights) > 1 else some

    def pieces(self) -> Iterator[slice]:
        """Runs of rows whose logits are worked on at once."""
        n, columns = len(self.y), self.n_classes * len(self.penalty)
        at_once = GPU_PIECE_BYTES if on_gpu(self.y.device) else PIECE_BYTES
        size = max(256, at_once // (columns * self.variance.element_size()))
        for start in range(0, n, size):
            yield slice(start, min(n, start + size))


@dataclass(eq=False)
class Minimum:
    """Where the problems ended: ``theta`` (K, C, r + 1); iterations, gradients computed and converged (K,)."""

    theta: torch.Tensor
    n_iter: torch.Tensor
    n_evals: torch.Tensor
    converged: torch.Tensor


@dataclass(frozen=True, eq=False)
class Progress:
    """What the caller may hear of an iteration: the problems still at work, their objectives and logits (K, C, N)."""

    n_iter: int
    problems: torch.Tensor
    objective: torch.Tensor  # (K,)
    theta: torch.Tensor
    logits: torch.Tensor


@dataclass(eq=False)
class _Point:
    """The sums over rows at one length of the step; ``residual`` is w (p - onehot(y)), (K, C, N)."""

    loss: torch.Tensor  # (K,)
    slope: torch.Tensor  # (K,) of the loss along the step
    bend: torch.Tensor  # (K,) second derivative
    curvature: torch.Tensor  # (K,) weighted mean of Σ_c p_c (1 - p_c), and what stands in for it


class _Logits:
    """The logits of all problems less that of each row's own class, and their change along a step.

    Softmax does not see the difference, and 1 - p of the own class becomes a sum of what is small instead of a
    difference of what is large: float32 then serves separable rows, too.
    """

    def __init__(self, objective: Objective, logits: torch.Tensor) -> None:
        self.objective, self.at = objective, logits
        self.residual = torch.empty_like(logits)

    def evaluate(self, step: torch.Tensor | None, length: torch.Tensor) -> _Point:
        """Loss, slope, bend and curvature at ``length`` (K,) along ``step`` (K, C, N), or here; fills ``residual``."""
        o = self.objective
        k, factor = len(o.penalty), length.to(self.at.dtype).view(-1, 1, 1)
        loss, slope, bend = torch.zeros(3, k, dtype=torch.float64, device=self.at.device)
        curvature, wrong = torch.zeros(2, k, o.n_classes, dtype=torch.float64, device=self.at.device)
        for piece in o.pieces():
            w = o.weights_of(piece)
            at = self.at[..., piece]
            x = at.clone() if step is None else torch.addcmul(at, step[..., piece], factor)
            places = o.y[piece].expand(k, 1, -1)
            highest = x.amax(dim=1, keepdim=True)  # at least 0: the own class's
            p = x.sub_(highest).exp_().scatter_(1, places, 0.0)
            others, own = p.sum(dim=1, keepdim=True), torch.exp(-highest)
            ce = torch.log1p(others + torch.expm1(-highest)).add_(highest).squeeze(1)
            loss += ce.mul_(w).sum(dim=1, dtype=torch.float64)
            total = others + own
            p.div_(total)
            if step is not None:
                d = step[..., piece]
                pd = p * d
                mean = pd.sum(dim=1)
                slope += (mean * w).sum(dim=1, dtype=torch.float64)
                square = pd.mul_(d).sum(dim=1)
                bend += square.addcmul_(mean, mean, value=-1).mul_(w).sum(dim=1, dtype=torch.float64)
            missed, wide = others.div_(total), w.unsqueeze(1)
            p.scatter_(1, places, missed)  # |p - onehot(y)|
            wp = p * wide
            sums = wp.sum(dim=2, dtype=torch.float64)
            wrong += sums
            curvature += sums - p.mul_(wp).sum(dim=2, dtype=torch.float64)
            self.residual[..., piece] = wp.scatter_(1, places, missed.mul_(wide).neg_())
        # A row that is sure of a wrong class has no curvature here, but will have on its way: half its error stands in.
        # On rows that are sure of their own class, p (1 - p) is the error, and this changes nothing.
        return _Point(loss, slope, bend, torch.maximum(curvature, 0.5 * wrong).sum(dim=1))

    def coupling(self) -> torch.Tensor:
        """Weighted mean of diag(p) - p pᵀ at the logits as they are, (K, C, C) float64: how classes bend together.

        Its rows sum to zero, from which the diagonal is made: p (1 - p) would be lost to rounding where p is near 1.
        """
        o = self.objective
        square = self.at.new_zeros(len(o.penalty), o.n_classes, o.n_classes)
        for piece in o.pieces():
            w = o.weights_of(piece)
            p = torch.softmax(self.at[..., piece], dim=1)
            square.baddbmm_(p * w.unsqueeze(1), p.transpose(1, 2))
        between = square.double()
        between.diagonal(dim1=1, dim2=2).zero_()
        return torch.diag_embed(between.sum(dim=2)) - between


def minimise(
    objective: Objective,
    start: torch.Tensor,
    *,
    tol: float,
    fall_tol: float,
    max_iter: int,
    on_iteration: Callable[[Progress], None] | None = None,
) -> Minimum:
    """Minimise all problems from ``start`` (K, C, r + 1).

    A problem has converged where each class's gradient is no longer than ``tol`` and half of gᵀ P⁻¹ g, an estimate of
    what the objective can still fall by, is below ``fall_tol`` of it; P is the preconditioner, S ⊗ diag(variance) + λ
    with S the classes' coupling. One that has come no closer for PATIENCE iterations is given up.
    """
    run = _Run(objective, start)
    k = len(start)
    n_iter, n_evals = torch.zeros(k, dtype=torch.int64), torch.zeros(k, dtype=torch.int64)
    end = Minimum(torch.empty_like(start), n_iter, n_evals, torch.zeros(k, dtype=torch.bool))
    alive = torch.arange(k)
    best, since = torch.full((k,), torch.inf, dtype=torch.float64), torch.zeros(k, dtype=torch.int64)
    for number in range(1, max_iter + 1):
        run.step()
        left = run.left(tol, fall_tol).cpu()
        if on_iteration is not None:
            on_iteration(Progress(number, alive, run.value(), run.theta, run.logits.at))
        better = left < best
        best, since = torch.minimum(best, left), torch.where(better, number, since)
        done = left <= 1
        leave = done | (number - since >= PATIENCE) | (number == max_iter)
        if not leave.all() and int(leave.sum()) * LEAVE_SHARE < len(alive):
            continue
        out, stay = alive[leave], (~leave).nonzero().squeeze(1)
        places = on_device(leave.nonzero().squeeze(1), start.device)  # (a mask would have a GPU tell how many they are)
        end.theta.index_copy_(0, on_device(out, start.device), run.theta.index_select(0, places))
        end.n_iter[out], end.n_evals[out], end.converged[out] = number, number + 1, done[leave]
        alive, best, since = alive[stay], best[stay], since[stay]
        if not len(alive):
            break
        run.keep(on_device(stay, start.device))
    return end


class _Run:
    """The problems that are still at work."""

    def __init__(self, objective: Objective, start: torch.Tensor) -> None:
        self.objective, self.theta = objective, start.clone()
        k, c, _ = start.shape
        n = len(objective.y)
        zero = not bool(start.any())
        at = torch.zeros(k, c, n, dtype=start.dtype, device=start.device) if zero else self._forward(self.theta)
        self.logits = _Logits(objective, at)
        self.history: list[tuple[torch.Tensor, torch.Tensor]] = []  # what moved, and what the gradient changed by
        self.rho = torch.zeros(0, k, dtype=torch.float64, device=start.device)  # 1 / their inner products
        self.steps = 0
        self._settle(self.logits.evaluate(None, objective.penalty))
        self._differentiate()

    def _forward(self, theta: torch.Tensor) -> torch.Tensor:
        k, c, wide = theta.shape
        out = self.objective.product.forward(theta[..., :-1].reshape(k * c, wide - 1)).view(k, c, -1)
        out += theta[..., -1:]
        return out.sub_(out.gather(1, self.objective.y.expand(k, 1, -1)))

    def _differentiate(self) -> None:
        """The gradient, ``down``, the direction that the preconditioner makes of it, and their inner product."""
        self.gradient = self._gradient()
        self.down = self._precondition(self.gradient)
        self.fall = _dot(self.gradient, self.down)

    def _gradient(self) -> torch.Tensor:
        residual = self.logits.residual
        k, c, n = residual.shape
        gradient = torch.empty_like(self.theta)
        gradient[..., :-1] = self.objective.product.backward(residual.view(k * c, n)).view(k, c, -1)
        gradient[..., -1] = residual.sum(dim=2)
        gradient[..., :-1].addcmul_(self.theta[..., :-1], self.objective.penalty.to(gradient.dtype).view(-1, 1, 1))
        return gradient

    def _settle(self, point: _Point) -> None:
        """Take a point's loss, and make the preconditioner of its curvature.

        The Hessian's mean over independent p and u is ``S ⊗ diag(variance)``, S = E[diag(p) - p pᵀ]. S is decomposed
        every few steps: ``turn`` (K, C, C) are its vectors, ``shares`` (K, C) its values with a sum of 1; in between it
        only shrinks or grows. ``scale`` (K, C, r + 1) is the diagonal in turned classes.
        """
        self.loss = point.loss
        dtype = self.theta.dtype
        if self.steps % COUPLING_STEPS == 0:
            values, vectors = eigh_of_many(self.logits.coupling())
            values = torch.maximum(values, COUPLING_FLOOR * values[:, -1:]).clamp_min_(CURVATURE_FLOOR)
            self.turn, self.shares = vectors.to(dtype), values / values.sum(dim=1, keepdim=True)
        h = (self.shares * point.curvature.unsqueeze(1)).clamp_min(CURVATURE_FLOOR).to(dtype).unsqueeze(2)
        bend = h * self.objective.variance
        bend += self.objective.penalty.to(dtype).view(-1, 1, 1)
        self.scale = torch.cat([bend, h], dim=2)

    def _precondition(self, q: torch.Tensor) -> torch.Tensor:
        """P⁻¹ q (K, C, r + 1), without the part that is common to all classes, which no logit can see."""
        turned = torch.bmm(self.turn.transpose(1, 2), q).div_(self.scale)
        out = torch.bmm(self.turn, turned)
        return out.sub_(out.mean(dim=1, keepdim=True))

    def left(self, tol: float, fall_tol: float) -> torch.Tensor:
        """How far each problem is from converged (K,): 1 or less is there."""
        length = torch.linalg.vector_norm(self.gradient, dim=2).amax(dim=1).double()
        return torch.maximum(length / tol, 0.5 * self.fall / (fall_tol * self.value()))

    def value(self) -> torch.Tensor:
        """The objectives (K,)."""
        weights = self.theta[..., :-1]
        return self.loss + 0.5 * self.objective.penalty * _dot(weights, weights)

    def step(self) -> None:
        """One iteration."""
        d, slope0 = self._descent()
        change = self._forward(d)
        length, point = self._search(d, slope0, change)
        factor = length.to(d.dtype).view(-1, 1, 1)
        self.logits.at.addcmul_(change, factor)
        moved = d.mul_(factor)
        self.theta = self.theta + moved
        self.steps += 1
        self._settle(point)
        before = self.gradient
        self._differentiate()
        self._remember(moved, self.gradient - before)

    def _descent(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A direction (K, C, r + 1) and the slope (K,) along it; where rounding has spoilt the memory, without it."""
        d = self._direction()
        slope = _dot(self.gradient, d)
        spoilt = slope >= 0
        if on_gpu(d.device) or bool(spoilt.any()):  # (to ask a GPU takes longer than what may be in vain)
            self.rho.masked_fill_(spoilt, 0)
            d = torch.where(spoilt.view(-1, 1, 1), -self.down, d)
            slope = torch.where(spoilt, -self.fall, slope)
        return d, slope

    def _search(self, d: torch.Tensor, slope0: torch.Tensor, change: torch.Tensor) -> tuple[torch.Tensor, _Point]:
        """Lengths (K,) at which the slope is small and the objective lower, by Newton's method kept in a bracket."""
        penalty, weights, step = self.objective.penalty, self.theta[..., :-1], d[..., :-1]
        tt, td, dd = _dot(weights, weights), _dot(weights, step), _dot(step, step)
        before = self.value()
        enough = SLOPE_KEPT * slope0.abs() + torch.finfo(d.dtype).tiny  # (at the very optimum there is no slope)
        length = torch.ones_like(slope0)
        low, high = torch.zeros_like(length), torch.full_like(length, torch.inf)
        for trial in range(TRIALS):
            point = self.logits.evaluate(change, length)
            slope = point.slope + penalty * (td + length * dd)
            value = point.loss + 0.5 * penalty * (tt + 2 * length * td + length.square() * dd)
            # Where the slope still falls, a convex objective is lower than before; behind the minimum it is asked.
            lower = (slope <= 0) | (value <= before * (1 + torch.finfo(d.dtype).eps))
            right = (slope.abs() <= enough) & lower
            if bool(right.all()):
                break
            low, high = torch.where(slope < 0, length, low), torch.where(slope > 0, length, high)
            newton = length - slope / (point.bend + penalty * dd)
            outside = ~((newton > low) & (newton < high)) | (slope.abs() <= enough)
            halved = torch.where(high.isinf(), 4 * length, low + (high - low) / 4)
            better = torch.where(outside, halved, newton)
            if trial == TRIALS - 2:
                better = low  # the last one to be looked at is known to be lower than the start, or the start itself
            length = torch.where(right, length, better)
        return length, point

    def _direction(self) -> torch.Tensor:
        """-H g by the two loops of L-BFGS (Nocedal & Wright, algorithm 7.4), the preconditioner in the middle."""
        q = self.gradient.clone()
        factors = []
        for (s, y), rho in zip(reversed(self.history), reversed(self.rho.unbind()), strict=True):
            a = rho * _dot(s, q)
            factors.append(a)
            q.addcmul_(y, -a.to(q.dtype).view(-1, 1, 1))
        q = self._precondition(q)
        for (s, y), rho, a in zip(self.history, self.rho.unbind(), reversed(factors), strict=True):
            q.addcmul_(s, (a - rho * _dot(y, q)).to(q.dtype).view(-1, 1, 1))
        return q.neg_()

    def _remember(self, s: torch.Tensor, y: torch.Tensor) -> None:
        sy = _dot(s, y)
        rho = torch.where(sy > 0, 1 / sy, torch.zeros_like(sy))  # 0: rounding has eaten this one
        kept = max(MEMORY_AT_FIRST, min(MEMORY, self.steps // STEPS_PER_CORRECTION))
        self.history = [*self.history[-(kept - 1) :], (s, y)]
        self.rho = torch.cat([self.rho[-(kept - 1) :], rho.unsqueeze(0)])

    def keep(self, kept: torch.Tensor) -> None:
        """Go on with the problems at these places only."""
        self.objective = self.objective.select(kept)
        for name in ("theta", "gradient", "down", "fall", "loss", "scale", "turn", "shares"):
            setattr(self, name, getattr(self, name)[kept])
        self.history = [(s[kept], y[kept]) for s, y in self.history]
        self.rho = self.rho[:, kept]
        self.logits = _Logits(self.objective, self.logits.at[kept])


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products (K,) float64 of (K, ...) pairs."""
    products: torch.Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return products.double()
