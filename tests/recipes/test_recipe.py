"""`tfc.Recipe`: written down and read, its door, and use in a script of one's own."""

import re

import keras
import numpy as np
import pytest
from networks import compiled, conv_net, image_data, zeros

import tfcompress as tfc

FULL = """\
name: everything
about: One of each kind of setting.
stages:
  - prune_channels:
      budget:
        macs: 0.5
      rules:
        - Rule:
            match: ^conv
            amount: 0.25
      data: 64
  - fold
  - Pruning:
      schedule:
        Polynomial:
          initial: 0.0
          final: 0.8
          end: 1000
      pattern:
        - 4
        - 1
  - distill:
      teacher: teacher.keras
  - fit:
      epochs: 3
      learning_rate: 0.001
      optimizer: sgd
  - quantize_aware:
      config:
        QuantizationConfig:
          weight_bits: 4
          weights: learned_step
      calibration_data: null
  - QuantizationSchedule:
      bits:
        - - 0
          - 8
        - - 5
          - 4
  - fit:
      epochs: 1
      decay: none
  - export_tflite:
      kind: int8
"""


def test_yaml_to_recipe_to_yaml_is_exact():
    recipe = tfc.Recipe.from_yaml(FULL)
    assert recipe.to_yaml() == FULL
    assert tfc.Recipe.from_json(recipe.to_json()) == recipe
    assert tfc.Recipe.from_config(recipe.get_config()).to_yaml() == FULL


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_files_hold_the_same_recipe(suffix, tmp_path):
    recipe = tfc.Recipe.from_yaml(FULL)
    recipe.save(tmp_path / f"r.{suffix}")
    assert tfc.Recipe.load(tmp_path / f"r.{suffix}") == recipe
    assert list(tmp_path.iterdir()) == [tmp_path / f"r.{suffix}"]


def test_python_objects_are_written_as_data():
    made = tfc.Recipe(
        [
            {"prune_channels": {"rules": (tfc.Rule("a", amount=0.5),), "amount": 0.1}},
            tfc.Pruning(0.7, pattern=(4, 1), rules=[tfc.Rule("b", sparsity=0.5)]),
            {"fit": {"epochs": 2}},
            {"quantize_aware": {"config": tfc.QuantizationConfig(weight_bits=4)}},
            tfc.QuantizationSchedule(5),
            {"fit": {"epochs": 1}},
        ]
    )
    read = tfc.Recipe.from_yaml(made.to_yaml())
    assert read == made
    pruning = read.stages[1].settings
    assert pruning["sparsity"] == 0.7 and pruning["pattern"] == [4, 1]
    assert pruning["rules"] == [{"Rule": {"match": "b", "sparsity": 0.5}}]
    assert "regrow" not in pruning
    assert read.stages[4].settings == {"start_step": 5}


def test_terms_of_distillation_and_clustering_are_written_as_data():
    d = tfc.distillation
    warming = tfc.schedules.Cosine(0.0, 1.0, end=100)
    terms = [d.SoftLabels(4.0), d.Hint("a", "b", weight=warming)]
    made = tfc.Recipe(
        [
            "cluster",
            {"distill": {"terms": terms, "alpha": 0.3}},
            tfc.ClusteringSchedule([[0, 0.5], [5, 1.0]]),
            {"fit": {"epochs": 1}},
        ]
    )
    read = tfc.Recipe.from_yaml(made.to_yaml())
    assert read == made
    soft, hint = read.stages[1].arguments()["terms"]
    assert isinstance(soft, d.SoftLabels) and soft.temperature == 4.0
    assert (hint.student_layer, hint.teacher_layer) == ("a", "b")
    assert hint.weight.get_config() == warming.get_config()
    schedule = read.stages[2].verb(**read.stages[2].arguments())
    assert schedule.get_config() == made.stages[2].verb([[0, 0.5], [5, 1]]).get_config()
    with pytest.raises(ValueError, match="Did you mean 'Hint'"):
        tfc.Recipe([{"distill": {"terms": [{"Hunt": {}}]}}])


def test_terms_and_clustering_train_in_a_recipe(tmp_path):
    x, y = image_data(64)
    model = compiled(conv_net())
    hint = {"Hint": {"student_layer": "hidden", "teacher_layer": "hidden"}}
    recipe = tfc.Recipe(
        [
            {"cluster": {"clusters": 4}},
            {"distill": {"terms": [{"SoftLabels": {}}, hint]}},
            {"ClusteringSchedule": {"fraction": [[0, 0.5], [2, 1.0]]}},
            {"fit": {"epochs": 2}},
        ]
    )
    last = recipe.run(model, (x, y), tmp_path / "out").model
    kernel = np.asarray(tfc.strip(last).get_layer("hidden").kernel)
    assert len(np.unique(kernel)) <= 4
    alone = tfc.Recipe(
        [{"ClusteringSchedule": {"kmeans_every": 9}}, {"fit": {"epochs": 1}}]
    )
    with pytest.raises(ValueError, match="Put `cluster` before it"):
        alone.run(model, (x, y), tmp_path / "none")


@pytest.mark.parametrize("name", ["edge-int8", "edgetpu", "smallest", "tiny-mcu"])
def test_presets_are_texts_to_read_and_copy(name, tmp_path):
    assert name in tfc.Recipe.presets()
    written = tfc.Recipe.preset_text(name)
    assert written.startswith("# For ")
    (tmp_path / "mine.yaml").write_text(written)
    recipe = tfc.Recipe.load(tmp_path / "mine.yaml")
    assert recipe == tfc.Recipe.preset(name) and recipe.name == name
    assert tfc.Recipe.from_yaml(recipe.to_yaml()) == recipe


BAD = {
    "no list": ("fold", TypeError, "must be a list"),
    "empty": ([], ValueError, "one stage or more"),
    "no stage": ([{"prune_chanels": {}}], ValueError, "Stage 1: .*'prune_channels'"),
    "capital": (["fold", "pruning"], ValueError, "Stage 2: .*mean 'Pruning'"),
    "no mapping": ([3], TypeError, "Stage 1: a stage is a name"),
    "two names": ([{"fold": {}, "fit": {}}], ValueError, r"\['fold', 'fit'\]"),
    "a value": ([{"Pruning": 0.8}], TypeError, "settings are a mapping"),
    "setting": (
        [{"prune_channels": {"amont": 0.5}}],
        ValueError,
        "`prune_channels`: there is no setting 'amont'. Did you mean 'amount'",
    ),
    "the run's": ([{"fold": {"return_report": True}}], ValueError, "no setting"),
    "missing": ([{"fit": {}}], ValueError, r"\['epochs'\] must be set"),
    "range": ([{"Pruning": {"sparsity": 1.5}}], ValueError, "`Pruning`.*1.5"),
    "object": (
        [{"Pruning": {"schedule": {"Polinomial": {"final": 1}}}}],
        ValueError,
        "no object 'Polinomial'. Did you mean 'Polynomial'",
    ),
    "in object": (
        [{"Pruning": {"schedule": {"Polynomial": {"initial": 0, "final": 0.5}}}}],
        ValueError,
        r"`Polynomial`: \['end'\] must be set",
    ),
    "config": (
        [{"quantize_aware": {"config": {"QuantizationConfig": {"weight_bits": 9}}}}],
        ValueError,
        "`quantize_aware`: `weight_bits`",
    ),
    "function": (
        [{"Pruning": {"score": abs}}],
        TypeError,
        "`score` must be text.*built-in",
    ),
    "predicate": (
        [{"Pruning": {"rules": [tfc.Rule(str.isdigit, sparsity=0.5)]}}],
        ValueError,
        "predicate cannot be saved",
    ),
    "infinite": ([{"Pruning": {"sparsity": np.inf}}], TypeError, "finite number"),
    "numbered": (
        [{"QuantizationSchedule": {"bits": {200: 8}}}],
        TypeError,
        "Write pairs",
    ),
    "data": ([{"Pruning": {"data": 0.5}}], ValueError, "how many examples"),
    "own data": ([tfc.Pruning(data=(1, 2))], ValueError, "holds no data"),
    "teacher": (
        [{"distill": {"teacher": 3}}],
        TypeError,
        "path of a .tflite file, a .keras",
    ),
    "epochs": ([{"fit": {"epochs": 0}}], ValueError, "`epochs` must be 1"),
    "rate": (
        [{"fit": {"epochs": 1, "learning_rate": "1e-3"}}],
        TypeError,
        "`learning_rate` must be a number",
    ),
    "decay": ([{"fit": {"epochs": 1, "decay": "x"}}], ValueError, "cosine"),
    "optimizer": (
        [{"fit": {"epochs": 1, "optimizer": "adm"}}],
        ValueError,
        "`optimizer` must be the name",
    ),
    "loss": ([{"fit": {"epochs": 1, "loss": "mae2"}}], ValueError, "keras.losses"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_at_the_door(case):
    stages, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        tfc.Recipe(stages)


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    with pytest.raises(FileNotFoundError, match="No such recipe file.*edge-int8"):
        tfc.Recipe.load(path)
    with pytest.raises(ValueError, match="one of the suffixes"):
        tfc.Recipe.load("edge-int8")
    path.write_text("stages: [foldd]")
    with pytest.raises(ValueError, match="r.yaml.*Stage 1.*'fold'"):
        tfc.Recipe.load(path)
    path.write_text("stage: [fold]\nstages: [fold]")
    with pytest.raises(ValueError, match="no 'stage'. Did you mean 'stages'"):
        tfc.Recipe.load(path)
    path.write_text("- fold")
    with pytest.raises(ValueError, match="mapping with `stages`"):
        tfc.Recipe.load(path)
    with pytest.raises(ValueError, match="no preset 'edge-int'.*'edge-int8'"):
        tfc.Recipe.preset("edge-int")
    with pytest.raises(ValueError, match="suffixes"):
        tfc.Recipe(["fold"]).save(tmp_path / "r.txt")


@pytest.mark.slow
def test_apply_and_callbacks_are_for_a_training_of_ones_own():
    x, y = image_data(96)
    model = compiled(conv_net())
    recipe = tfc.Recipe(
        [
            {"prune_channels": {"amount": 0.5}},
            {"factorize": {"include": "hidden", "rank": 2}},
            {"Pruning": {"sparsity": 0.5, "skip_small_and_last": False}},
            {"distill": {"alpha": 0.5}},
            "quantize_aware",
        ]
    )
    student = compiled(recipe.apply(model, (x, y)))
    assert isinstance(student, tfc.Distiller) and student.teacher is model
    (pruning,) = recipe.callbacks()
    assert isinstance(pruning, tfc.Pruning)
    student.fit(x, y, batch_size=32, epochs=2, verbose=0, callbacks=[pruning])
    plain = tfc.strip(student)
    # Shares by shape: small kernels keep more than half.
    assert zeros(plain)[0] > 0.5 and zeros(plain)[1] > 0.4
    assert plain.get_layer("conv").filters == 4
    assert model.get_layer("conv").filters == 8
    # New ones each time: a callback belongs to one `fit`.
    assert recipe.callbacks()[0] is not pruning


@pytest.mark.parametrize("depth", [900, 100_000])
def test_json_that_is_nested_too_deeply_is_refused(depth):
    deep = "[" * depth + "]" * depth
    with pytest.raises(ValueError, match="nested too deeply"):
        tfc.Recipe.from_json(f'{{"stages": [{{"fit": {{"epochs": {deep}}}}}]}}')


def test_apply_hands_examples_to_verbs_that_read_them():
    x, y = image_data(96)
    recipe = tfc.Recipe(
        [
            {
                "prune_channels": {
                    "amount": 0.5,
                    "score": "rank",
                    "data": 16,
                    "include": "^conv",
                }
            }
        ]
    )
    assert recipe.apply(conv_net(), (x, y)).get_layer("conv").filters == 4
    with pytest.raises(ValueError, match="Stage 1, `prune_channels`.*score='rank'"):
        recipe.apply(conv_net())


def test_apply_is_refused_where_the_recipe_trains_in_between():
    recipe = tfc.Recipe([tfc.Pruning(), {"fit": {"epochs": 1}}, "quantize_aware"])
    for use in (lambda: recipe.apply(conv_net()), recipe.callbacks):
        with pytest.raises(ValueError, match="Stage 3, `quantize_aware`.*recipe.run"):
            use()
    at_the_end = tfc.Recipe(["fold", {"fit": {"epochs": 1}}, "export_tflite"])
    assert isinstance(at_the_end.apply(conv_net()), keras.Model)


def test_the_text_of_a_refusal_names_what_there_is():
    with pytest.raises(ValueError) as err:
        tfc.Recipe([{"Prunin": {}}])
    found = re.search(r"The stages are (\[.*\])", str(err.value))
    assert "'fit'" in found[1] and "'quantize_aware'" in found[1]
