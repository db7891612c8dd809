"""Pretrain on synthetic anomalies, fit a Gaussian density, score chest radiographs.

The reference pipeline of Sato et al., arXiv:2205.04282. Run it from the repository's root::

    python -m examples.pretrain_gde                      # phantoms, no data needed
    python -m examples.pretrain_gde train --data DIR     # real data
    python -m examples.pretrain_gde --help

One module owns one thing, in the order of the work: `readers` lists a data set's files, `data`
loads them, `augment` makes the classes to tell apart, `model` is the network, `train` trains it,
`density` fits and scores, `metrics` measures, `shortcuts` knows what else tells images apart,
`evaluate` and `report` write down the result, `heatmap` draws where a score comes from, `predict`
scores new images, `transfer` tests elsewhere, `compare` makes the table. `settings` holds every
choice, `runtime` knows the hardware, `storage` writes and checks files (with `disk`: whole ones,
and locks), `cli` reads the command line.
"""
