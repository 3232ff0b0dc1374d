"""Geometries of convolutions that the tests of decompositions share."""

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": (5, 3), "stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": (2, 4), "stride": (2, 3), "dilation": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 3, "padding": "valid", "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "circular"},
]
