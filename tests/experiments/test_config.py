"""The configuration and its checks."""

from __future__ import annotations

import json

import pytest

from pyguide.experiments import config as config_module
from pyguide.experiments.config import QUICK, Config
from pyguide.experiments.errors import UserError


def test_config_survives_json():
    config = QUICK.changed({"lr": ["none=0.5"], "arms": ["none"], "seeds": [4, 5]})
    assert config.lr == {**QUICK.lr, "none": 0.5}
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert set(QUICK.changed({"lr": ["0.25"]}).lr.values()) == {0.25}
    assert QUICK.changed({"lr": ["0.25"], "arms": ["none"]}).lr["none"] == 0.25


def test_device_check_accepts_the_cpu():
    config_module.check_device("cpu")
    with pytest.raises(UserError, match="torch cannot use it"):
        config_module.check_device("nonsense")
