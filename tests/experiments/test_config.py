"""The configuration: its checks, and its way through JSON."""

from __future__ import annotations

import json

import pytest

from pyguide.device import check_device
from pyguide.errors import UserError
from pyguide.experiments.deep_fcn import EXPERIMENT

SHIPPED = EXPERIMENT.scales["default"].config


def test_config_survives_json():
    config = SHIPPED.changed(
        {"lr": ["none=0.5"], "arms": ["none"], "seeds": [4, 5], "vary": ["depth=3,4"]}
    )
    assert config.lr == {**SHIPPED.lr, "none": 0.5} and config.vary == {"depth": (3, 4)}
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config
    assert set(SHIPPED.changed({"lr": ["0.25"]}).lr.values()) == {0.25}
    assert SHIPPED.changed({"lr": ["0.25"], "arms": ["none"]}).lr["none"] == 0.25


def test_device_check_accepts_the_cpu():
    check_device("cpu")
    with pytest.raises(UserError, match="torch cannot use it"):
        check_device("nonsense")
