"""Train CartPole, print each evaluation while it trains, and draw an episode of the policy."""

import jaxdqn
from jaxdqn.__main__ import main as command
from jaxdqn.run import run


class Watch:
    """Print a line for each evaluation; a callback may do anything here."""

    def on_evaluation(self, context):
        record = context.record
        print(f"{record['env_steps']:>8,} steps  return {record['return_mean']:6.1f}")


config = jaxdqn.preset("cartpole", seed=0)
result = run(config, out="runs/watched", callbacks=Watch())
print("held after", round(result.summary["seconds_to_hold"], 2), "seconds of training")

command(["evaluate", "runs/watched", "--episodes", "100", "--video", "cartpole.gif"])
