"""Rows of the papers' tables, with the published values and the systems that are trained to reproduce them.

Values are quoted as published, including their relation sign (>= for a lower bound on the log-likelihood,
<= for an upper bound on its negative, ~ for an estimate).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyro_zf.reproduce.systems import Training

__all__ = ["TABLES", "Row", "Section", "Table"]

Kind = Literal["bounds", "interpolation", "kl-curves", "bound-curves", "latents-curves"]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        label: label of the row, as in the paper.
        published: published value by column.
        system: the system that is trained for comparison, a key of ``SYSTEMS``. None if the model is not
            part of this package.
    """

    label: str
    published: Mapping[str, str]
    system: str | None = None


@dataclass(frozen=True)
class Section:
    """The rows of one data set.

    Args:
        dataset: name of a data set of :class:`~pyro_zf.training.DataConfig`.
        rows: rows of the table.
        splits: splits to evaluate.
        note: remark for the reader about this data set, such as its units.
    """

    dataset: str
    rows: tuple[Row, ...]
    splits: tuple[Literal["valid", "test"], ...] = ("test",)
    note: str = ""

    def trainings(self, num_seeds: int) -> list[Training]:
        """The runs that the section needs."""
        extra = {}
        if self.dataset == "ptb":  # figure 3 of Shabanian et al. 2017
            extra = {"valid_latents": ("prior", "prior-mean")}
        return [
            Training(self.dataset, row.system, seed, extra if row.system.startswith("vbl") else {})
            for row in self.rows
            if row.system is not None
            for seed in range(num_seeds)
        ]


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Args:
        title: paper and number.
        caption: description of the content.
        sections: parts of the table, one for each data set.
        kind: how the table or figure is rendered.
        seeds: default number of runs of each system.
        columns: columns of the published values.
        notes: remarks for the reader about the comparison.
    """

    title: str
    caption: str
    sections: tuple[Section, ...]
    kind: Kind = "bounds"
    seeds: int = 1
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


_SPEECH_SYSTEMS = {
    "RNN-Gauss": "rnn-gauss", "RNN-GMM": "rnn-gmm", "VRNN-I-Gauss": "vrnn-i-gauss",
    "VRNN-Gauss": "vrnn-gauss", "VRNN-GMM": "vrnn-gmm", "SRNN (smooth + res_q)": "srnn",
}  # fmt: skip
_PUBLISHED_SPEECH = {
    "blizzard": ("3539", "7413", ">= 8933", ">= 9223", ">= 9392", ">= 11991"),
    "timit": ("-1900", "26643", ">= 28340", ">= 28805", ">= 28982", ">= 60550"),
}
_OURS = {
    "Ours": "zf", "Ours + kla": "zf-kla", "Ours + aux": "zf-aux", "Ours + kla, aux": "zf-kla-aux"
}  # fmt: skip
_PUBLISHED_OURS = {
    "blizzard": (">= 14435", ">= 14226", ">= 15430", ">= 15024"),
    "timit": (">= 68132", ">= 68903", ">= 69530", ">= 70469"),
}
_SPEECH_NOTE = (
    "nats per sequence of frames normalised by the training set's mean and standard deviation; "
    "higher is better"
)


def _tested(systems: Mapping[str, str], published: Sequence[str]) -> tuple[Row, ...]:
    """Rows of the systems, given by label, with their published test results."""
    return tuple(
        Row(label, {"test": printed}, system)
        for (label, system), printed in zip(systems.items(), published, strict=True)
    )


def _others(values: Mapping[str, str]) -> tuple[Row, ...]:
    return tuple(Row(label, {"test": printed}) for label, printed in values.items())


_AVERAGED = "Variational Bi-LSTM, costs averaged over units"
_MEAN_NOTE = 'The auxiliary costs are averaged over the units of a state; see "averaged over units" in table 4.'
_ZF, _VBL = "Z-Forcing (Goyal et al. 2017)", "Variational Bi-LSTM (Shabanian et al. 2017)"
_MNIST_OTHERS = {
    "DBN 2hl": "~ 84.55", "NADE": "88.33", "EoNADE-5 2hl": "84.68", "DLGM 8": "~ 85.51",
    "DARN 1hl": "~ 84.13", "DRAW": "<= 80.97", "PixelVAE": "~ 79.02",
    "P-Forcing (3-layer)": "79.58", "PixelRNN (1-layer)": "80.75", "PixelRNN (7-layer)": "79.20",
    "MatNets": "78.50",
}  # fmt: skip
_MNIST_NOTE = "negative log-likelihood in nats per image, lower is better"

#: Tables and figures by name.
TABLES: dict[str, Table] = {
    "zf-table1": Table(
        f"Table 1 of {_ZF}",
        "Average log-likelihood per test sequence of speech; negative log-likelihood of sequential MNIST.",
        (
            *(
                Section(
                    name,
                    (
                        *_tested(_SPEECH_SYSTEMS, _PUBLISHED_SPEECH[name]),
                        *_tested(_OURS, _PUBLISHED_OURS[name]),
                    ),
                    note=_SPEECH_NOTE,
                )
                for name in ("blizzard", "timit")
            ),
            Section(
                "mnist",
                (
                    *_others(_MNIST_OTHERS),
                    Row("Ours (1 layer)", {"test": "<= 80.60"}, "zf"),
                    Row("Ours + aux (1 layer)", {"test": "<= 80.09"}, "zf-aux"),
                ),
                note=_MNIST_NOTE,
            ),
        ),
        columns=("test",),
    ),
    "zf-table2": Table(
        f"Table 2 of {_ZF}",
        "IMDB language modelling for several weights of the auxiliary costs: word perplexity by ELBO and IWAE, and KL.",
        (
            Section(
                "imdb",
                tuple(
                    Row(label, dict(zip(
                        ("KL", "valid ELBO", "valid IWAE", "test ELBO", "test IWAE"),
                        printed, strict=True)), system)
                    for label, system, printed in (
                        ("Ours, alpha = beta = 0", "zf", ("0.12", "53.93", "52.40", "54.67", "53.11")),
                        ("Ours + aux, 0.0025", "zf-aux-0.0025", ("3.03", "55.71", "52.54", "56.57", "53.37")),
                        ("Ours + aux, 0.005", "zf-aux-0.005", ("9.82", "65.03", "58.13", "65.84", "58.83")),
                    )
                ),
                splits=("valid", "test"),
                note="perplexity per word, lower is better; KL in nats per sentence",
            ),
        ),
        kind="kl-curves",
        columns=("KL", "valid ELBO", "valid IWAE", "test ELBO", "test IWAE"),
    ),
    "zf-table3": Table(
        f"Table 3 of {_ZF}",
        "Linear interpolation between the latent paths of two sentences, decoded by argmax and by sampling.",
        (
            Section(
                "imdb",
                (Row("Ours + aux, 0.005", {}, "zf-aux-0.005"), Row(_AVERAGED, {}, "vbl-mean")),
                note="perplexity per word, lower is better",
            ),
        ),
        kind="interpolation",
        notes=(
            "The paper does not say which of its models was used; here it is the one with the highest KL. "
            "Variational Bi-LSTM is not in the paper's table.",
        ),
    ),
    "zf-figure2": Table(
        f"Figure 2 of {_ZF}",
        "KL divergence during training, with and without the auxiliary cost and KL annealing.",
        (
            *(
                Section(name, tuple(Row(label, {}, system) for label, system in _OURS.items()), note=_SPEECH_NOTE)
                for name in ("blizzard", "timit")
            ),
            Section(
                "mnist",
                (Row("Ours", {}, "zf"), Row("Ours + aux", {}, "zf-aux")),
                note=f"not in the paper's figure; {_MNIST_NOTE}",
            ),
            Section(
                "imdb",
                (
                    Row("Ours", {}, "zf"),
                    Row("Ours + aux, 0.0025", {}, "zf-aux-0.0025"),
                    Row("Ours + aux, 0.005", {}, "zf-aux-0.005"),
                ),
                note="not in the paper's figure; perplexity per word, lower is better",
            ),
        ),
        kind="kl-curves",
        seeds=3,
    ),
    "vbl-table1": Table(
        f"Table 1 of {_VBL}",
        "Average log-likelihood per test sequence of speech.",
        tuple(
            Section(
                name,
                (
                    *_tested(_SPEECH_SYSTEMS, _PUBLISHED_SPEECH[name]),
                    Row("Z-Forcing", {"test": zforcing}, "zf-aux"),
                    Row("Variational Bi-LSTM", {"test": ours}, "vbl"),
                ),
                note=_SPEECH_NOTE,
            )
            for name, zforcing, ours in (
                ("blizzard", ">= 14315", ">= 17319"), ("timit", ">= 68852", ">= 73315"),
            )
        ),
        columns=("test",),
    ),
    "vbl-table2": Table(
        f"Table 2 of {_VBL}",
        "Negative log-likelihood of sequential MNIST.",
        (
            Section(
                "mnist",
                (
                    *_others(_MNIST_OTHERS),
                    Row("Z-Forcing", {"test": "<= 80.09"}, "zf-aux"),
                    Row("Variational Bi-LSTM", {"test": "<= 79.78"}, "vbl"),
                ),
                note=_MNIST_NOTE,
            ),
        ),
        columns=("test",),
    ),
    "vbl-table3": Table(
        f"Table 3 of {_VBL}",
        "Word perplexity on IMDB.",
        (
            Section(
                "imdb",
                (
                    Row("Gated Word-Char", {"valid": "70.60", "test": "70.87"}),
                    Row("Z-Forcing", {"valid": "56.48", "test": "65.68"}, "zf-aux-0.0025"),
                    Row("Variational Bi-LSTM", {"valid": "51.43", "test": "51.60"}, "vbl"),
                    Row(_AVERAGED, {}, "vbl-mean"),
                ),
                splits=("valid", "test"),
                note="perplexity per word, lower is better",
            ),
        ),
        columns=("valid", "test"),
        notes=("The paper does not say from which bound its perplexities are computed.",),
    ),
    "vbl-table4": Table(
        f"Table 4 of {_VBL}",
        "Bits per character on Penn Treebank.",
        (
            Section(
                "ptb",
                (
                    Row("Unregularized LSTM", {"valid": "1.47", "test": "1.36"}, "rnn"),
                    *(
                        Row(label, {"valid": valid, "test": test})
                        for label, valid, test in (
                            ("Weight noise", "1.51", "1.34"), ("Norm stabilizer", "1.46", "1.35"),
                            ("Stochastic depth", "1.43", "1.34"),
                            ("Recurrent dropout", "1.40", "1.29"), ("Zoneout", "1.36", "1.25"),
                            ("RBN", "-", "1.32"), ("H-LSTM + LN", "1.28", "1.25"),
                            ("3-HM-LSTM + LN", "-", "1.24"), ("2-H-LSTM + LN", "1.25", "1.22"),
                        )
                    ),
                    Row("Z-Forcing", {"valid": "1.29", "test": "1.26"}, "zf-aux"),
                    Row("Variational Bi-LSTM", {"valid": "1.26", "test": "1.23"}, "vbl"),
                    Row(_AVERAGED, {}, "vbl-mean"),
                ),
                splits=("valid", "test"),
                note="bits per character, lower is better",
            ),
        ),
        columns=("valid", "test"),
    ),
    "vbl-table5": Table(
        f"Table 5 of {_VBL}",
        "Perplexity on IMDB with activity regularisation gamma in place of the reconstruction of h.",
        (
            Section(
                "imdb",
                (
                    Row("with reconstruction (table 3)", {"test": "51.60"}, "vbl-mean"),
                    *(
                        Row(f"gamma = {gamma:g}", {"test": "see note"}, f"vbl-mean-gamma-{gamma:g}")
                        for gamma in (0.001, 1.0, 4.0, 8.0, 16.0)
                    ),
                ),
                note="perplexity per word, lower is better",
            ),
        ),
        columns=("test",),
        notes=(
            "Of the paper's five values, only three are legible in the available copy: 59.97, 77.24 and "
            "86.72. Their values of gamma are not legible. All three are above 51.60.",
        ),
    ),
    "vbl-table6": Table(
        f"Table 6 of {_VBL}",
        "KL divergence of the Variational Bi-LSTM, for the model with the best validation result.",
        tuple(
            Section(
                name,
                (
                    Row("Variational Bi-LSTM", {"KL": printed}, "vbl"),
                    *([] if name == "mnist" else [Row(_AVERAGED, {}, "vbl-mean")]),
                ),
                ("valid",),
                note,
            )
            for name, printed, note in (
                ("ptb", "0.001", "nats per segment"), ("mnist", "0.02", "nats per image"),
                ("imdb", "0.18", "nats per sentence"), ("timit", "3204.71", "nats per utterance"),
                ("blizzard", "3799.79", "nats per half second"),
            )
        ),
        columns=("KL",),
        notes=("The paper states neither the split nor the unit of these values.",),
    ),
    "vbl-figure2": Table(
        f"Figure 2 of {_VBL}",
        "Average log-likelihood during training, with and without skip gradient and auxiliary costs.",
        tuple(
            Section(
                name,
                (
                    Row("Variational Bi-LSTM", {}, "vbl-mean"),
                    Row("without skip gradient", {}, "vbl-mean-no-skip"),
                    Row("without auxiliary costs", {}, "vbl-no-aux"),
                ),
                note=note,
            )
            for name, note in (("ptb", "bits per character, lower is better"), ("blizzard", _SPEECH_NOTE))
        ),
        kind="bound-curves",
        seeds=3,
        notes=(_MEAN_NOTE,),
    ),
    "vbl-figure3": Table(
        f"Figure 3 of {_VBL}",
        "Bits per character on Penn Treebank's validation text with z drawn from the prior or at its mean.",
        (Section("ptb", (Row("Variational Bi-LSTM", {}, "vbl-mean"),), ("valid",), "bits per character, lower is better"),),
        kind="latents-curves",
        seeds=3,
        notes=(_MEAN_NOTE,),
    ),
}  # fmt: skip
