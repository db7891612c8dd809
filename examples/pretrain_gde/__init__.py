"""Pretrain on synthetic anomalies, fit a Gaussian density, score chest radiographs.

The reference pipeline of Sato et al., arXiv:2205.04282. Run it from the repository's root::

    python -m examples.pretrain_gde                      # phantoms, no data needed
    python -m examples.pretrain_gde train --data DIR     # real data
    python -m examples.pretrain_gde --help

One module owns one thing, in the order of the work: `readers` lists a data set's files, `data`
loads them, `view` is what a network sees of one, `augment` makes the classes to tell apart,
`backbones` makes a network of a name, `model` adds its heads, `train` trains it, `density` fits and
scores, `detector` keeps all that, `metrics` measures, `shortcuts` knows what else tells images
apart, `evaluate` and `report` write down the result, `heatmap` draws where a score comes from,
`predict` scores new images, `transfer` tests elsewhere, `compare` sums up and makes the table,
`finetune` learns from few labels. `settings` holds every choice, `given` imports code of the user's
own, `runtime` knows the hardware, `storage` writes and checks text, `tensors` numbers (with `disk`:
whole files, and locks; `forms`: what JSON may hold), `cli` reads the command line, and `commands`
does what it says.
"""
