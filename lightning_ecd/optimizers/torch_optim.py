"""Records of the torch.optim classes that are registered as they are."""

import torch

from lightning_ecd.optimizers.traits import Entry, Traits
from lightning_ecd.ranges import LogUniform, Uniform

_LR = LogUniform(1e-4, 1e0)
_DECAY = LogUniform(1e-6, 1e-2)

SGD = Entry(
    torch.optim.SGD,
    Traits(
        family="plain",
        summary="stochastic gradient descent, momentum in [0, inf)",
        paper="Robbins, Monro, Ann. Math. Stat. 1951; Polyak, 1964",
        state="momentum != 0",
        rows=True,
    ),
    {"lr": _LR, "momentum": Uniform(0.0, 0.999), "weight_decay": _DECAY},
)

ADAM = Entry(
    torch.optim.Adam,
    Traits(
        family="adaptive",
        summary="moving averages of gradient and squared gradient",
        paper="Kingma, Ba, ICLR 2015, arXiv 1412.6980",
        state="2 + (amsgrad == 1)",
        rows=True,
    ),
    {"lr": LogUniform(1e-5, 1e-1), "weight_decay": _DECAY},
)

ADAMW = Entry(
    torch.optim.AdamW,
    Traits(
        family="adaptive",
        summary="Adam with decoupled weight decay",
        paper="Loshchilov, Hutter, ICLR 2019, arXiv 1711.05101",
        state="2 + (amsgrad == 1)",
        rows=True,
    ),
    {"lr": LogUniform(1e-5, 1e-1), "weight_decay": LogUniform(1e-4, 1e0)},
)

RMSPROP = Entry(
    torch.optim.RMSprop,
    Traits(
        family="adaptive",
        summary="gradient over a moving average of its size",
        paper="Tieleman, Hinton, Coursera lecture 6.5, 2012",
        state="1 + (momentum != 0) + (centered == 1)",
        rows=True,
    ),
    {"lr": LogUniform(1e-5, 1e-1), "momentum": Uniform(0.0, 0.99)},
)
