"""Evolution-strategy gradients once more: loops over tasks and time, float64.

One truncation of T steps of B tasks, each run with +noise and -noise. All estimators
take the same arguments and return (grad (P,), next accumulators (B, P)):

    d: (T, B), loss of the + run minus loss of the - run.
    done: (T, B), true at the last step of an episode (not cumulative).
    mask: (T, B), 0 where a loss does not count, as at the reset after an episode.
    eps: (B, P), noise drawn for this truncation, of standard deviation sigma.
    A: (B, P), what a task remembers of earlier noise.
    sigma: Standard deviation of the noise.

A task without an unmasked step contributes zero and counts in the mean.

Sources: Vicol, Metz, Sohl-Dickstein, ICML 2021 (PES), and the released library; Li et
al., arXiv 2304.12180 (NRES).
"""

import numpy as np


def after_end(done, i, inclusive):
    """Return a list over time: has an episode of task i ended?

    Inclusive: at this step or before; else before this step.
    """
    flags, ended = [], False
    for t in range(len(done)):
        before = ended
        ended = ended or bool(done[t, i])
        flags.append(ended if inclusive else before)
    return flags


def two_sums(d, mask, i, flags):
    """Return the masked means of task i's differences: before and after the end."""
    before = after = count = 0.0
    for t in range(len(d)):
        m = float(mask[t, i])
        count += m
        if m == 0:
            continue  # a loss that does not count may be NaN
        if flags[t]:
            after += float(d[t, i]) * m
        else:
            before += float(d[t, i]) * m
    if count == 0:
        return 0.0, 0.0
    return before / count, after / count


def es(d, done, mask, eps, A, sigma):
    """Return the antithetic estimate of one truncation; A comes back unchanged."""
    eps = np.asarray(eps, dtype=np.float64)
    B, P = eps.shape
    grad = np.zeros(P)
    for i in range(B):
        difference, _ = two_sums(d, mask, i, [False] * len(d))
        grad += difference * eps[i]
    return grad / B / (2 * sigma**2), np.array(A, dtype=np.float64)


def pes(d, done, mask, eps, A, sigma, inclusive=True, zero_last=False):
    """Return the persistent estimate.

    Args:
        d: Differences (T, B).
        done: Last steps of episodes (T, B).
        mask: Losses that count (T, B).
        eps: Noise of this truncation (B, P).
        A: Sum of the noise of the running episode before this truncation (B, P).
        sigma: Standard deviation.
        inclusive: Whether the loss of an episode's last step counts as after its end,
            as in the released library (biased).
        zero_last: Exclusive only: whether A starts at 0, not at eps, if the last step
            of the truncation ends an episode.
    """
    eps, A = np.asarray(eps, dtype=np.float64), np.asarray(A, dtype=np.float64)
    B, P = eps.shape
    grad, new = np.zeros(P), np.zeros((B, P))
    for i in range(B):
        total = A[i] + eps[i]
        before, after = two_sums(d, mask, i, after_end(done, i, inclusive))
        grad += before * total + after * eps[i]
        if not any(done[t, i] for t in range(len(d))):
            new[i] = total
        elif zero_last and not inclusive and done[-1, i]:
            new[i] = 0.0
        else:
            new[i] = eps[i]
    return grad / B / (2 * sigma**2), new


def nres(d, done, mask, eps, A, sigma, switch=True):
    """Return the estimate with one noise per episode.

    A (B, P) is the noise of the running episode (at the first call the first noise),
    eps that of the episode that follows if the running one ends.

    Args:
        d: Differences (T, B).
        done: Last steps of episodes (T, B).
        mask: Losses that count (T, B).
        eps: Noise of the next episode (B, P).
        A: Noise of the running episode (B, P).
        sigma: Standard deviation.
        switch: Whether steps after the end of the episode were run with eps; else the
            whole truncation was run with A.
    """
    eps, A = np.asarray(eps, dtype=np.float64), np.asarray(A, dtype=np.float64)
    B, P = eps.shape
    grad, new = np.zeros(P), np.zeros((B, P))
    for i in range(B):
        before, after = two_sums(d, mask, i, after_end(done, i, False))
        grad += before * A[i] + after * (eps[i] if switch else A[i])
        new[i] = eps[i] if any(done[t, i] for t in range(len(d))) else A[i]
    return grad / B / (2 * sigma**2), new


def reported_loss(plus, minus, mask):
    """Return the mean over tasks of the masked means of (L+ + L-) / 2."""
    T, B = np.shape(plus)
    total = 0.0
    for i in range(B):
        count = value = 0.0
        for t in range(T):
            if mask[t, i]:
                count += mask[t, i]
                value += mask[t, i] * (plus[t, i] + minus[t, i]) / 2
        total += value / count if count else 0.0
    return total / B
