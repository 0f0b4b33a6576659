import re

import pytest

from configs import cuhk, icfg, rstp, synth
from input_pipeline.errors import UserError
from ivt_jax import dry_run
from ivt_jax.flops import parameter_count, step_cost

CONFIGS = [(synth, variant) for variant in synth.VARIANTS]
CONFIGS += [(module, variant) for module in (cuhk, icfg, rstp) for variant in ("", "release")]


@pytest.mark.parametrize(("module", "variant"), CONFIGS, ids=[f"{m.__name__[8:]}:{v}" for m, v in CONFIGS])
def test_every_config_is_told_without_data(module, variant):
    config = module.get_config(variant)
    config.data.root = "nowhere"
    text = dry_run.dry_run(config)
    total = int(re.search(r"Total: ([\d,]+)", text)[1].replace(",", ""))
    assert total == parameter_count(config.model)  # the model's own shapes against the formula
    assert str(step_cost(config)) in text
    assert f"name: {config.data.name}" in text and "root: nowhere" in text


def test_what_training_would_start_from_is_told(monkeypatch):
    config = synth.get_config()
    monkeypatch.setattr(dry_run, "plan", lambda config: f"parameters from {config.train.init_from}")
    config.train.init_from = "weights/x"
    assert "\nparameters from weights/x\n" in dry_run.dry_run(config)


def test_a_config_at_fault_is_refused():
    config = synth.get_config()
    config.optimizer.name = "adam"
    with pytest.raises(UserError, match=r'^optimizer.name is "adam"; expected one of sgd, adamw$'):
        dry_run.dry_run(config)
