"""Sweep the learning rate over seeds in one program, and draw a figure for a paper."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import jaxdqn
from jaxdqn.monitoring.groups import band_of, groups_of
from jaxdqn.monitoring.styles import styles
from jaxdqn.run import run

RATES = (3e-4, 1e-3, 3e-3, 1e-2)

config = jaxdqn.preset(
    "cartpole",
    num_seeds=5,
    sweep=(f"learning_rate={','.join(map(str, RATES))}",),
    stop_when="never",
    total_rows=120_000,
    eval_every=12_800,
    eval_episodes=20,
)
run(config, out="runs/sweep")  # 20 learners, compiled once

# Interquartile mean over the seeds of each rate, with its 95 % bootstrap interval.
plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
figure, axis = plt.subplots(figsize=(3.4, 2.3), layout="constrained")  # one column
for group, (line, colour) in zip(groups_of(["runs/sweep"]), styles(), strict=False):
    band = band_of(group, "env_steps")
    x = [steps / 1000 for steps in band.x]
    label = f"{group.values['learning_rate']:g}"
    axis.plot(x, [point.iqm for point in band.estimates], line, color=colour, label=label)
    low, high = zip(*((point.low, point.high) for point in band.estimates), strict=True)
    axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
axis.set(xlabel="environment steps (thousands)", ylabel="greedy return", ylim=(0, 510))
figure.legend(loc="outside upper center", title="learning rate", frameon=False, ncols=4)
figure.savefig("sweep.pdf")
figure.savefig("sweep.png", dpi=200)

for group in groups_of(["runs/sweep"]):
    final = sorted(seed.returns[-1] for seed in group.seeds)
    print(f"learning rate {group.values['learning_rate']:<6g} final returns {final}")
