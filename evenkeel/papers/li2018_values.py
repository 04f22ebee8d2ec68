"""The figures that Li et al. 2018 print, by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NETS = ("preresnet", "resnext", "wrn", "densenet")


def _published(
    key: str, levels: Sequence[str], values: Mapping[str, Sequence[Sequence[float]]], after: str = ""
) -> dict[str, dict[str, float]]:
    """A printed table with one row a net and one column a level, by data set, as figures by arm."""
    return {
        f"{data}-{net}{after}-{level}": {key: value}
        for data, rows in values.items()
        for net, row in zip(NETS, rows, strict=True)
        for level, value in zip(levels, row, strict=True)
    }


def _merged(*tables: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    arms = dict.fromkeys(arm for table in tables for arm in table)
    return {arm: {key: v for table in tables for key, v in table.get(arm, {}).items()} for arm in arms}


TABLE_1 = {
    f"{data}-{net}": {"cos2": cos2, "d_cos2": d_cos2}
    for data, rows in {
        "cifar10": ((0.03546, 2.91827), (0.02244, 14.78266), (0.02292, 52.73550), (0.01538, 3.83390)),
        "cifar100": ((0.03169, 2.59925), (0.02468, 14.72835), (0.02118, 44.31261), (0.01390, 3.43325)),
    }.items()
    for net, (cos2, d_cos2) in zip(NETS, rows, strict=True)
}


_FOUR = ("0.1", "0.3", "0.5", "0.7")


FIGURE_4 = _merged(
    _published(
        "test_error",
        _FOUR,
        {
            "cifar10": (
                (5.16, 5.87, 8.43, 14.51),
                (3.86, 4.10, 4.43, 4.57),
                (3.91, 3.99, 4.59, 10.26),
                (4.63, 5.55, 8.70, 18.10),
            ),
            "cifar100": (
                (24.10, 26.35, 32.45, 48.79),
                (17.75, 17.85, 19.04, 20.11),
                (18.65, 19.52, 21.08, 28.08),
                (22.41, 25.26, 31.45, 49.48),
            ),
        },
        after="-a",
    ),
    _published(
        "test_error",
        _FOUR,
        {
            "cifar10": (
                (5.06, 5.29, 5.86, 7.23),
                (3.81, 3.77, 4.09, 4.91),
                (3.85, 3.81, 3.81, 4.38),
                (4.67, 4.92, 5.63, 7.19),
            ),
            "cifar100": (
                (23.68, 24.36, 25.53, 27.74),
                (17.78, 18.35, 19.35, 21.17),
                (18.83, 18.73, 19.50, 20.99),
                (22.56, 22.86, 25.02, 27.51),
            ),
        },
        after="-b",
    ),
    _published(
        "test_error",
        ("0",),
        {"cifar10": ((4.91,), (3.77,), (3.98,), (4.83,)), "cifar100": ((23.98,), (17.69,), (19.15,), (22.45,))},
        after="-none",
    ),
    _published(
        "median",
        _FOUR,
        {
            "cifar10": (
                (1.025, 1.089, 1.272, 1.565),
                (1.033, 1.084, 1.221, 1.322),
                (1.066, 1.134, 1.293, 1.713),
                (1.062, 1.205, 1.484, 1.922),
            )
        },
        after="-a",
    ),
    _published(
        "median",
        _FOUR,
        {
            "cifar10": (
                (1.017, 1.028, 1.046, 1.060),
                (1.006, 1.019, 1.048, 1.064),
                (1.011, 1.018, 1.025, 1.051),
                (1.011, 1.014, 1.021, 1.041),
            )
        },
        after="-b",
    ),
    _published("median", ("0",), {"cifar10": ((1.003,), (1.004,), (1.002,), (1.006,))}, after="-none"),
)


TABLE_3 = _merged(
    *(
        _published(key, ("0.5",), {"cifar10": [(x,) for x in small], "cifar100": [(x,) for x in large]}, after=after)
        for key, after, small, large in (
            ("test_error", "-a", (8.42, 4.43, 4.59, 8.70), (32.45, 19.04, 21.08, 31.45)),
            ("adjusted_error", "-a", (6.42, 3.96, 4.20, 6.82), (26.57, 18.24, 20.70, 26.98)),
            ("test_error", "-b", (5.85, 4.09, 3.81, 5.63), (25.50, 19.33, 19.48, 25.00)),
            ("adjusted_error", "-b", (5.77, 3.93, 3.71, 5.29), (25.20, 19.09, 19.15, 23.92)),
        )
    )
)


TABLE_4 = _published(
    "test_error",
    ("0", "0.1", "0.2", "0.3", "0.5"),
    {
        "cifar10": (
            (5.02, 4.96, 5.01, 4.94, 5.03),
            (3.77, 3.89, 3.69, 3.78, 3.78),
            (3.97, 3.90, 4.00, 3.93, 3.84),
            (4.72, 4.67, 4.73, 4.75, 4.87),
        ),
        "cifar100": (
            (23.73, 23.43, 23.65, 23.45, 23.76),
            (17.78, 17.77, 17.99, 17.97, 18.26),
            (19.17, 19.17, 19.23, 19.19, 19.25),
            (22.58, 21.86, 22.41, 22.41, 23.49),
        ),
    },
)


TABLE_6 = _merged(
    _published(
        "test_error",
        ("0.1", "0.2", "0.3", "0.5"),
        {
            "cifar10": (
                (5.02, 4.85, 4.98, 4.97),
                (3.84, 3.83, 3.75, 3.79),
                (3.96, 3.80, 3.90, 3.84),
                (4.70, 4.64, 4.68, 4.61),
            ),
            "cifar100": (
                (23.73, 23.62, 23.53, 23.77),
                (17.74, 17.77, 17.83, 17.86),
                (19.07, 18.98, 18.95, 18.87),
                (22.39, 22.57, 22.35, 22.30),
            ),
        },
        after="-uout",
    ),
    _published(
        "test_error",
        ("0",),
        {"cifar10": ((5.02,), (3.77,), (3.97,), (4.72,)), "cifar100": ((23.73,), (17.78,), (19.17,), (22.58,))},
        after="-none",
    ),
)
