"""Arguments of the local-entropy family and of sharpness-aware minimization."""

from typing import Any

from tests.case import Case, Settings, outside

_INF = float("inf")
_BAD: dict[str, tuple[float, ...]] = {
    **{name: (0.0, -1.0, _INF) for name in ("lr", "inner_lr")},
    **{name: (-0.1, 1.0) for name in ("momentum", "outer_momentum", "inner_momentum")},
    **{name: (0.0, -1.0) for name in ("gamma_max", "rho_max", "eta")},
    **{name: (0, -1) for name in ("replicas", "every")},
    "alpha": (0.0, 1.1),
    "f_min": (_INF,),
    "dampening": (-0.1, 1.1),
}


def _refused(*names: str, **own: tuple[float, ...]) -> list[tuple[Settings, str]]:
    """Return bad values of arguments; those of no other bound must be >= 0."""
    values: dict[str, tuple[float, ...]] = {name: (-1.0, _INF) for name in names}
    values |= {name: _BAD[name] for name in names if name in _BAD} | own
    return [bad for name in values for bad in outside(name, *values[name])]


_WD = {"weight_decay": 1e-2}
_ENTROPY: Settings = {
    **{"lr": 0.5, "inner_steps": 4, "inner_lr": 0.02, "gamma": 0.1, "seed": 3},
    **{"scoping": 0.01, "noise": 1e-3},
}
_SWITCHES: dict[str, Any] = {
    **{"alpha": 0.6, "inner_wd": "inside", "outer_wd": True, "outer_momentum": 0.3},
    **{"inner_momentum": 0.5, "inner_nesterov": False, "reset_inner_momentum": False},
    **{"noise_scale": "sqrt(inner_lr)", "t0": 0, "skip_first_eval": False},
    **{"first_momentum": "python", "force_in_momentum": True, "gamma_max": 2.0},
    "scope_schedule": "bounded",
}
_WARM = {"temperature": 1e-8, "lr_decay": 0.01, "gamma_in_outer": True, "gamma": 0.5}
_ADAM: Settings = {
    **{"lr": 0.05, "inner_lr": 0.02, "gamma": 0.1, "scoping": 0.01, "noise": 1e-3},
    **{"inner_steps": 4, "seed": 3, "betas": (0.8, 0.99), "eps": 1e-7},
}
_PARTICLE: Settings = {
    **{"lr": 0.8, "inner_steps": 4, "inner_lr": 0.15, "gamma": 0.1, "seed": 3},
    **{"extra_energy": 1.0, "nu": 0.2},
}
_HEAVY = {"eta": 1.5, "alpha": 0.5, "inner_lr": 0.1}
_RELAXED: Settings = {
    **{"lr": 0.1, "inner_steps": 4, "inner_lr": 0.02, "gamma": 0.1, "seed": 3},
    **{"momentum": 0.9, "scoping": 0.01, "noise": 1e-3},
}
_PARLE: Settings = {
    **{"lr": 0.05, "inner_steps": 3, "inner_lr": 0.05, "gamma": 0.1, "scoping": 0.01},
    **{"rho": 0.5, "rho_max": 2.0, "gamma_max": 0.9},
}
_SWITCH_BOUNDS = ("alpha", "gamma_max", "outer_momentum", "inner_momentum")
_EXPLORING = ("lr", "weight_decay", "inner_steps", "inner_lr", "gamma", "scoping")
_PARLE_BOUNDS = ("gamma_max", "rho", "rho_max", "alpha")
_SGD = ("lr", "momentum", "weight_decay")

LOCAL_ENTROPY: dict[str, Case] = {
    "EntropySGD": Case(
        {
            "default": _ENTROPY,
            "plain": {**_ENTROPY, "momentum": 0.0, "noise": 0.0, **_WD},
            "heavy_ball": {**_ENTROPY, "nesterov": False, "dampening": 0.2},
            "python": {**_ENTROPY, "preset": "python", "lr": 0.02},
            "paper": {**_ENTROPY, "preset": "paper", **_WD},
            "hj": {**_ENTROPY, "preset": "hj", "lr": 0.1, "rho": 0.1},
            "switches": {**_ENTROPY, **_SWITCHES, **_WD},
            "matched": {**_ENTROPY, "match_norm": True, "diagnostics_every": 1},
            "warm": {**_ENTROPY, **_WARM},
            "sgd": {**_ENTROPY, "inner_steps": 0, "lr": 0.02},
        },
        [
            *_refused(*_EXPLORING, *_SWITCH_BOUNDS, "momentum", "dampening"),
            *_refused("noise", "temperature", "lr_decay", "rho", "diagnostics_every"),
            ({"preset": "c"}, "preset"),
            ({"scope_schedule": "cosine"}, "scope_schedule"),
            ({"inner_wd": "both"}, "inner_wd"),
            ({"noise_scale": "inner_lr"}, "noise_scale"),
            ({"first_momentum": "lua"}, "first_momentum"),
            ({"t0": 2}, "t0"),
            ({"dampening": 0.5}, "dampening"),
        ],
    ),
    "EntropyAdam": Case(
        {
            "default": {**_ADAM, "inner_lr": None},
            "mixture": {**_ADAM, "rho": 0.1, "lr_decay": 0.01, "diagnostics_every": 3},
            "reference": {
                **{**_ADAM, "skip_first_eval": False, "gamma_max": 1.0, "alpha": 0.5},
                **{"momentum": 0.0, "noise": 0.0, **_WD},
            },
            "adam": {**_ADAM, "inner_steps": 0, **_WD},
        },
        [
            *_refused(*_EXPLORING, "momentum", "noise", "gamma_max", "alpha"),
            *_refused("rho", "lr_decay", "diagnostics_every", eps=(0.0,)),
            ({"betas": (1.0, 0.9)}, "betas"),
        ],
    ),
    "EntropyECD": Case(
        {
            "default": {**_PARTICLE, "inner_steps": 5},
            "heavy": {**_PARTICLE, **_HEAVY, "diagnostics_every": 3},
            "still": {**_PARTICLE, "nu": 0.0, "skip_first_eval": False, **_WD},
            "constant_speed": {**_PARTICLE, "dynamics": "constant_speed", **_WD},
            "shifted": {**_PARTICLE, "f_min": -1.0, "gamma_max": 2.0, "scoping": 0.1},
            "descent": {**_PARTICLE, "lr": 0.02, "inner_steps": 0},
        },
        [
            *_refused(*_EXPLORING, "gamma_max", "alpha", "f_min", "extra_energy"),
            *_refused("eta", "nu", "diagnostics_every"),
            ({"dynamics": "brownian"}, "dynamics"),
        ],
    ),
    "EntropySGLD": Case(
        {
            "default": {**_ENTROPY, "temperature": 1e-8},
            "decay": {**_ENTROPY, "momentum": 0.5, **_WD},
        },
        _refused(*_EXPLORING, "momentum", "noise", "temperature"),
    ),
    "SGLD": Case(
        {
            "default": {"lr": 0.1, "seed": 3},
            "constant": {"lr": 0.05, "power": 0.0, **_WD},
            "cold": {"lr": 0.1, "noise": 0.0},
        },
        _refused("lr", "weight_decay", "noise", "power"),
    ),
    "HJB": Case(
        {"default": _RELAXED, "decay": {**_RELAXED, "noise": 0.0, **_WD}},
        _refused(*_EXPLORING, "momentum", "noise"),
    ),
    "HEAT": Case(
        {"default": {**_RELAXED, "gamma": 1.0}, "decay": {**_RELAXED, **_WD}},
        _refused(*_EXPLORING, "momentum", "noise"),
    ),
    "FP": Case(
        {
            "default": {"lr": 0.05, "inner_steps": 3},
            "momentum": {"lr": 0.02, "momentum": 0.8, "inner_steps": 3, **_WD},
            "explicit": {"lr": 0.05, "inner_steps": 0, "gamma": 5.0, "scoping": 0.01},
        },
        _refused(*_SGD, "inner_steps", "scoping", gamma=(0.0,)),
    ),
    "ProxSGD": Case(
        {
            "default": {"lr": 0.02, "inner_steps": 4, "momentum": 0.8},
            "stiff": {
                **{"lr": 0.02, "inner_steps": 4, "gamma": 0.5, "scoping": 0.1, **_WD},
                "gamma_max": 0.8,
            },
            "sgd": {"lr": 0.02, "inner_steps": 0},
        },
        _refused(*_SGD, "inner_steps", "gamma", "scoping", "gamma_max"),
    ),
    "Lookahead": Case(
        {
            "default": {"lr": 0.5, "inner_lr": 0.02},
            "nesterov": {"lr": 0.5, "inner_lr": 0.02, "nesterov": True, **_WD},
            "plain": {"lr": 0.8, "inner_lr": 0.05, "inner_steps": 4, "momentum": 0.0},
        },
        _refused(*_SGD, "inner_steps", "inner_lr"),
    ),
    "Parle": Case(
        {
            "default": {**_PARLE, "replicas": 2},
            "plain": {**_PARLE, "lr": 0.5, "momentum": 0.0, "alpha": 0.6, **_WD},
            "alone": {**_PARLE, "replicas": 1},
        },
        _refused(*_EXPLORING, "momentum", "replicas", *_PARLE_BOUNDS),
    ),
    "ElasticSGD": Case(
        {
            "default": {"lr": 0.02, "replicas": 2, "momentum": 0.8},
            "tight": {
                **{"lr": 0.02, "replicas": 3, "rho": 2.0, "scoping": 0.1, **_WD},
                "rho_max": 4.0,
            },
        },
        _refused(*_SGD, "replicas", "rho", "scoping", "rho_max"),
    ),
    "SAM": Case(
        {
            "default": {"lr": 0.02, "momentum": 0.9},
            "nesterov": {"lr": 0.02, "nesterov": True, **_WD},
            "plain": {"lr": 0.05, "momentum": 0.0, "rho": 0.02},
        },
        _refused(*_SGD, "rho"),
    ),
    "ASAM": Case(
        {
            "default": {"lr": 0.02, "rho": 0.1, "momentum": 0.9},
            "decay": {"lr": 0.02, "rho": 0.1, "nesterov": True, "offset": 0.1, **_WD},
        },
        _refused(*_SGD, "rho", "offset"),
    ),
    "LookSAM": Case(
        {
            "default": {"lr": 0.02, "momentum": 0.9, "rho": 0.05, "alpha": 0.5},
            "often": {"lr": 0.02, "every": 2, "momentum": 0.0, "nesterov": True, **_WD},
        },
        _refused(*_SGD, "rho", "every", alpha=(-1.0,)),
    ),
}
