"""Train 64 learners in one program: 8 settings with 8 seeds each, and rank the settings."""

from statistics import mean

import jaxdqn
from jaxdqn.run import run

config = jaxdqn.preset(
    "cartpole",
    num_seeds=8,
    sweep=("learning_rate=1e-3,2e-3,4e-3,8e-3", "gamma=0.98,0.99"),
    stop_when="never",
    total_rows=40_000,  # of each learner
    eval_every=20_000,
    eval_episodes=20,
)
result = run(config, out="runs/population")

summary = result.summary
print(f"{summary['env_steps']:,} environment steps of 64 learners,")
print(f"{summary['env_steps_per_second']:,.0f} a second\n")

by_setting: dict[tuple[float, float], list[float]] = {}
for learner in summary["learners"]:
    setting = learner["learning_rate"], learner["gamma"]
    by_setting.setdefault(setting, []).append(learner["eval_return_mean"])

print("learning rate  gamma  mean return  worst seed")
for (rate, gamma), returns in sorted(by_setting.items(), key=lambda item: -mean(item[1])):
    print(f"{rate:13g}  {gamma:5g}  {mean(returns):11.1f}  {min(returns):10.1f}")

# The policy of the best learner.
policy = jaxdqn.load_policy("runs/population")
print("\naction at the upright pole:", policy([0.0, 0.0, 0.0, 0.0]))
