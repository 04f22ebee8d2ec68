"""The figures that Li et al. 2018 print, by arm.

A block is a figure, a place, and its levels; then a line a net, CIFAR-10 before CIFAR-100.
"""

from __future__ import annotations

NETS = ("preresnet", "resnext", "wrn", "densenet")
_DATA = ("cifar10", "cifar100")


def _published(text: str) -> dict[str, dict[str, float]]:
    """Printed tables as figures by arm, such as "cifar10-wrn-a-0.5"."""
    arms: dict[str, dict[str, float]] = {}
    lines = text.strip().splitlines()
    for start in range(0, len(lines), 1 + len(NETS)):
        head, _, levels = lines[start].partition(":")
        key, place = head.split()
        rows = [[part.split() for part in line.split("|")] for line in lines[start + 1 : start + 1 + len(NETS)]]
        for data, parts in zip(_DATA, zip(*rows, strict=True), strict=False):
            for net, values in zip(NETS, parts, strict=True):
                for level, value in zip(levels.split(), values, strict=True):
                    arms.setdefault(f"{data}-{net}{place.rstrip('-')}-{level}", {})[key] = float(value)
    return arms


TABLE_1 = {
    f"{data}-{net}": {"cos2": cos2, "d_cos2": d_cos2}
    for data, rows in {
        "cifar10": ((0.03546, 2.91827), (0.02244, 14.78266), (0.02292, 52.73550), (0.01538, 3.83390)),
        "cifar100": ((0.03169, 2.59925), (0.02468, 14.72835), (0.02118, 44.31261), (0.01390, 3.43325)),
    }.items()
    for net, (cos2, d_cos2) in zip(NETS, rows, strict=True)
}
FIGURE_4 = _published("""
test_error -a: 0.1 0.3 0.5 0.7
  5.16 5.87 8.43 14.51 | 24.10 26.35 32.45 48.79
  3.86 4.10 4.43 4.57 | 17.75 17.85 19.04 20.11
  3.91 3.99 4.59 10.26 | 18.65 19.52 21.08 28.08
  4.63 5.55 8.70 18.10 | 22.41 25.26 31.45 49.48
test_error -b: 0.1 0.3 0.5 0.7
  5.06 5.29 5.86 7.23 | 23.68 24.36 25.53 27.74
  3.81 3.77 4.09 4.91 | 17.78 18.35 19.35 21.17
  3.85 3.81 3.81 4.38 | 18.83 18.73 19.50 20.99
  4.67 4.92 5.63 7.19 | 22.56 22.86 25.02 27.51
test_error -none: 0
  4.91 | 23.98
  3.77 | 17.69
  3.98 | 19.15
  4.83 | 22.45
median -a: 0.1 0.3 0.5 0.7
  1.025 1.089 1.272 1.565
  1.033 1.084 1.221 1.322
  1.066 1.134 1.293 1.713
  1.062 1.205 1.484 1.922
median -b: 0.1 0.3 0.5 0.7
  1.017 1.028 1.046 1.060
  1.006 1.019 1.048 1.064
  1.011 1.018 1.025 1.051
  1.011 1.014 1.021 1.041
median -none: 0
  1.003
  1.004
  1.002
  1.006
""")
TABLE_3 = _published("""
test_error -a: 0.5
  8.42 | 32.45
  4.43 | 19.04
  4.59 | 21.08
  8.70 | 31.45
adjusted_error -a: 0.5
  6.42 | 26.57
  3.96 | 18.24
  4.20 | 20.70
  6.82 | 26.98
test_error -b: 0.5
  5.85 | 25.50
  4.09 | 19.33
  3.81 | 19.48
  5.63 | 25.00
adjusted_error -b: 0.5
  5.77 | 25.20
  3.93 | 19.09
  3.71 | 19.15
  5.29 | 23.92
""")
TABLE_4 = _published("""
test_error -: 0 0.1 0.2 0.3 0.5
  5.02 4.96 5.01 4.94 5.03 | 23.73 23.43 23.65 23.45 23.76
  3.77 3.89 3.69 3.78 3.78 | 17.78 17.77 17.99 17.97 18.26
  3.97 3.90 4.00 3.93 3.84 | 19.17 19.17 19.23 19.19 19.25
  4.72 4.67 4.73 4.75 4.87 | 22.58 21.86 22.41 22.41 23.49
""")
TABLE_6 = _published("""
test_error -uout: 0.1 0.2 0.3 0.5
  5.02 4.85 4.98 4.97 | 23.73 23.62 23.53 23.77
  3.84 3.83 3.75 3.79 | 17.74 17.77 17.83 17.86
  3.96 3.80 3.90 3.84 | 19.07 18.98 18.95 18.87
  4.70 4.64 4.68 4.61 | 22.39 22.57 22.35 22.30
test_error -none: 0
  5.02 | 23.73
  3.77 | 17.78
  3.97 | 19.17
  4.72 | 22.58
""")
