"""Success of policies over seeds and repeats: ``python -m eval.success task=pusht``.

A run can be stopped at any time, or be killed: every finished episode is stored at once, and the
same command goes on with those that are missing.
"""

from __future__ import annotations

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../configs/eval", config_name="success")
def main(config: DictConfig) -> None:
    """Evaluate; exit with 0 if every episode has run, 1 if some are missing, 2 if none could.

    A key that Hydra does not know ends with 1, too.
    """
    # Spawned workers import this module anew: what only the parent needs is imported here.
    from asd_policy import AsdPolicyError
    from envs.errors import UnknownTaskError
    from eval.errors import EvaluationError
    from eval.evaluation import evaluate
    from eval.request import Request

    try:
        request = Request.from_config(config)
        complete = evaluate(request, _command())
    except (EvaluationError, AsdPolicyError, UnknownTaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\ninterrupted: every finished episode is stored; the same command goes on with the "
            "others",
            file=sys.stderr,
        )
        sys.exit(130)
    sys.exit(0 if complete else 1)


def _command() -> str:
    hydra_config = HydraConfig.get()
    words = ["python", "-m", "eval.success"]
    if hydra_config.job.config_name != "success":
        words += ["--config-name", str(hydra_config.job.config_name)]
    return shlex.join([*words, *hydra_config.overrides.task])


if __name__ == "__main__":
    main()
