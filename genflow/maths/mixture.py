"""A Gaussian mixture for each label, fitted to the codes that an encoder gives the data.

    p(z | label) = sum_k w_k N(z; mu_k, S_k)

The mixture is fitted to the aggregated posterior, q(z) = 1/N sum_i N(z; m_i, diag v_i), by expectation maximization.
The variance v_i of every code enters the updates directly, so no codes are drawn:

    r_ik  ~ w_k N(m_i; mu_k, S_k) exp(-tr(S_k^-1 diag v_i) / 2)
    S_k   = (sum_i r_ik [T_i - mu_k mu_k'] + d W) / (n_k + d),    T_i = m_i m_i' + diag v_i,   n_k = sum_i r_ik

Apart from the prior on S_k, each step raises a lower bound of E_q log p(z), the term of the evidence lower bound that
depends on the prior. W is the components' mean covariance. It regularizes small components: S_k keeps full rank even
with a single point.

References:
    ELBO surgery (Hoffman, Johnson, 2016), for the aggregated posterior as the best prior
    VAE with a VampPrior (Tomczak, Welling, 2018)                    https://arxiv.org/abs/1705.07120
    From Variational to Deterministic Autoencoders (Ghosh et al., 2020), for fitting it after training
    https://arxiv.org/abs/1903.12436
"""

import math

import torch
from torch import Tensor, nn

from genflow.maths.wide import wide, wide_type

MIN_VARIANCE = 1e-6  # added to every variance
TOLERANCE = 1e-3  # nats per point; the fit ends when an iteration gains less


class Mixture(nn.Module):
    """Gaussian components, and one weight per label and component; all are persistent buffers of fixed shape.

    Args:
        labels: L; every label has its own mixture.
        components: M, the number of components of all labels together.
        dims: d, the numbers in z.

    Attributes:
        log_weight: (L, M) log w_k; -inf where a component does not belong to the label.
        mean: (M, d).
        root: (M, d, d), the lower Cholesky factors of the covariances.
        fitted: (), bool: whether there is a fit.
    """

    log_weight: Tensor
    mean: Tensor
    root: Tensor
    fitted: Tensor

    def __init__(self, labels: int, components: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("log_weight", torch.full((labels, components), -math.inf))
        self.register_buffer("mean", torch.zeros(components, dims))
        self.register_buffer("root", torch.zeros(components, dims, dims))  # S_k = root root', lower triangular
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def clear(self) -> None:
        """Discard the fit."""
        self.log_weight.fill_(-math.inf)
        self.fitted.fill_(False)

    def set_components(self, label: int, first: int, share: float, weight: Tensor, mean: Tensor, root: Tensor) -> None:
        """Store the result of `fit` as components `first`, `first` + 1, ..., with weight `share` for the label."""
        own = slice(first, first + len(weight))
        self.log_weight[label, own] = (share * weight).log().float()
        self.mean[own], self.root[own] = mean.float(), root.float()
        self.fitted.fill_(True)

    def draw(self, eps: Tensor, choice: Tensor, label: Tensor) -> Tensor:
        """Draw z = mu_k + root_k eps, (B, d); the component k is a function of `choice`.

        Args:
            eps: (B, d), standard normal.
            choice: (B,), uniform in [0, 1); k is the first component at which the cumulative weight exceeds it.
            label: (B,).
        """
        total = wide(self.log_weight[label]).exp().cumsum(1)
        k = (total <= wide(choice)[:, None] * total[:, -1:]).sum(1).clamp(max=total.shape[1] - 1)
        return self.component(k, eps)

    def component(self, k: Tensor, eps: Tensor) -> Tensor:
        """z = mu_k + root_k eps, (B, d), for components k (B,) and standard normal eps (B, d)."""
        return self.mean[k] + (self.root[k] @ eps[:, :, None]).squeeze(2)

    def limits(self) -> Tensor:
        """The standard normal quantile of each label's cumulative weights, (L, M).

        Component k of `draw` is the number of limits that a standard normal score reaches. So an exported program
        needs no error function, which onnxruntime lacks in double precision.
        """
        total = wide(self.log_weight).exp().cumsum(1)
        return torch.special.ndtri(total / total[:, -1:]).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)

    def log_density(self, z: Tensor, label: Tensor) -> Tensor:
        """log p(z | label) of z (B, d) in nats, (B,), in double precision."""
        out = z.new_empty(len(z), dtype=wide_type(z.device))
        for one in label.unique():
            rows, own = label == one, self.log_weight[one] > -math.inf
            density = _log_normal(wide(z[rows]), wide(self.mean[own]), wide(self.root[own]))
            out[rows] = (density + wide(self.log_weight[one, own])).logsumexp(1)
        return out


def fit(
    mean: Tensor, variance: Tensor, components: int, generator: torch.Generator, iterations: int = 30
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a mixture of at most `components` Gaussians to points N(mean_i, diag variance_i).

    Args:
        mean: (N, d), N >= 1.
        variance: (N, d); 0 for exact points.
        components: the largest K; fewer are fitted if there are fewer than 2 d points per component.
        generator: chooses the points from which the fit starts.
        iterations: the largest number of iterations.

    Returns:
        Weights (K,), means (K, d) and lower Cholesky factors of the covariances (K, d, d), all float64.
    """
    if wide_type(mean.device) != torch.float64:
        mean, variance = mean.cpu(), variance.cpu()  # the fit is inaccurate in single precision
    centre = mean.double().mean(0)
    m = mean.double() - centre
    count, d = m.shape
    moment = (m[:, :, None] * m[:, None] + torch.diag_embed(variance.double())).flatten(1)  # (N, d d)
    K = max(1, min(components, count // (2 * d)))
    r = torch.zeros(count, K, dtype=torch.float64, device=m.device)
    r[torch.arange(count), torch.cdist(m, m[_initial_rows(m, K, generator)]).argmin(1)] = 1
    before = -math.inf
    for _ in range(iterations):
        n = r.sum(0) + 1e-10  # (K,)
        mu = (r.T @ m) / n[:, None]
        S = (r.T @ moment).unflatten(1, (d, d)) - n[:, None, None] * mu[:, :, None] * mu[:, None]
        S = (S + d * S.sum(0) / n.sum()) / (n[:, None, None] + d)
        root = torch.linalg.cholesky(S + MIN_VARIANCE * torch.eye(d, dtype=m.dtype, device=m.device))
        precision = torch.cholesky_inverse(root)
        pull = (precision @ mu[:, :, None]).squeeze(2)  # (K, d)
        scale = n.log() - root.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * (pull * mu).sum(1)
        joint = scale - 0.5 * moment @ precision.flatten(1).T + m @ pull.T  # (N, K), up to a constant
        total = joint.logsumexp(1)
        r = (joint - total[:, None]).exp()
        if (now := float(total.mean())) - before < TOLERANCE:
            break
        before = now
    return n / n.sum(), mu + centre, root


def _log_normal(z: Tensor, mean: Tensor, root: Tensor) -> Tensor:
    """log N(z_i; mean_k, root_k root_k') for every point and component, (N, K)."""
    y = torch.linalg.solve_triangular(root, (z - mean[:, None]).mT, upper=False)  # (K, d, N)
    log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
    return (-0.5 * y.square().sum(1) - log_det[:, None] - 0.5 * z.shape[1] * math.log(2 * math.pi)).T


def _initial_rows(points: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Choose rows by k-means++: each is drawn in proportion to its squared distance from the rows chosen before."""
    def draw(weight: Tensor) -> int:
        u = torch.rand((), generator=generator, dtype=torch.float64)
        total = weight.cpu().cumsum(0)
        return min(int((total <= u * total[-1]).sum()), len(weight) - 1)

    chosen = [draw(torch.ones(len(points), dtype=torch.float64))]
    nearest = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chosen.append(draw(nearest) if float(nearest.sum()) else chosen[0])
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(1))
    return chosen
