"""Evaluate a trained run on the test split, or predict image files with it.

    python infer.py                       # the latest run on the test split
    python infer.py --run NAME            # another run
    python infer.py film.jpg folder/      # a table, one line a file; without a run, with the
                                          # bundled model (--run pretrained)
    find . -name '*.png' | python infer.py - --at sensitivity90 --out found.csv
    python infer.py --compare A B         # two tested runs: is A better than B?
    python infer.py --pool fold-1 fold-2 fold-3     # all folds of a split

Backbone, weights, preprocessing, classes, temperature and thresholds come from
the run's checkpoint, not from config.yaml. So does the split, if config.yaml
names another one. Nothing is tuned on test images.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from fracture.cli import InputError, run_script
from fracture.config import OPERATING_POINTS, InferConfig
from fracture.settings import operating_point, parse_settings, settings_parser


def arguments(argv: Sequence[str] | None = None) -> tuple[InferConfig, Namespace]:
    parser = settings_parser(InferConfig, __doc__, "[FILE_OR_FOLDER ...] ")
    add = parser.add_argument
    add("files", nargs="*", default=[], help="images or folders to predict; - reads paths")
    at = "what decides: protocol (0.5), sensitivity90, youden, a threshold like 0.3, or a target on"
    at += " validation like sensitivity=0.95 or specificity=0.9 [%(default)s]"
    add("--at", type=operating_point, metavar="POINT", default=OPERATING_POINTS[0], help=at)
    add("--out", metavar="FILE", help="also write the printed table to a .csv or .json file")
    add("--heatmaps", metavar="DIR", help="write each film with its heat map as a PNG")
    add("--compare", nargs=2, metavar="RUN", help="paired comparison of two tested runs")
    add("--pool", nargs="+", metavar="RUN", help="metrics over the tested runs of several folds")
    return parse_settings(InferConfig, parser, argv)


if __name__ == "__main__":
    run_script(arguments)  # --help and mistyped settings answer before torch is imported

from fracture.atomic import publish, staging_dir
from fracture.distributed import RANK
from fracture.evaluation.model import Model
from fracture.evaluation.predict import find_images, predict_files
from fracture.features.extract import Compute, cached_features, pick_compute
from fracture.runs.trained import TrainedRun, load_trained


def main(argv: Sequence[str] | None = None) -> None:
    config, options = arguments(argv)
    if options.compare or options.pool:
        from fracture.evaluation.compare import compare_runs, pool_runs

        names, compare = options.compare or options.pool, bool(options.compare)
        (compare_runs if compare else pool_runs)(names, options.out)
        return
    if (options.out or options.heatmaps) and not options.files:
        raise InputError("--out and --heatmaps need files to predict")
    paths = find_images(options.files)
    compute = pick_compute(config)
    run = load_trained(config, compute.precision)
    run.classifier.add_point(options.at)
    if paths:
        predict_files(Model(run.classifier, compute), paths, options)
    else:
        test(run, config, compute)


def test(run: TrainedRun, config: InferConfig, compute: Compute) -> None:
    """From test images to metrics, heat maps and a report, in runs/NAME/test/."""
    # Imported here: a single film need not wait for plots and torchvision.
    from fracture.data.split_folder import SplitFolder
    from fracture.evaluation.pointing import explain_test, localisation
    from fracture.evaluation.report import write_report
    from fracture.evaluation.test_set import evaluate_test, print_results, write_predictions
    from fracture.runs.tracking import log_test

    wandb_mode, split_dir = run.wandb_mode(config), run.find_split(config)
    classifier, spec = run.classifier, run.classifier.spec
    folder = SplitFolder(split_dir, "test", spec.image_size, spec.fit)
    (images,) = cached_features([folder], spec, Path(config.cache_dir), compute)
    if RANK > 0:
        return

    with staging_dir(run.folder / "test") as new:
        digest = write_predictions(new / "predictions.csv", classifier, images)
        results = run.metadata() | {"unreadable": len(images.unreadable)}
        results |= {"predictions_sha256": digest, **evaluate_test(classifier, images, split_dir)}
        pictures, films = explain_test(classifier, folder, images, compute)
        results["localisation"] = localisation(films)
        (new / "films.json").write_text(json.dumps(films))
        write_report(new, run, images, results, pictures, split_dir)
        publish(new, run.folder / "test", replace=True)
    print_results(results)
    log_test(wandb_mode, config.wandb_project, run.folder, results)
    accuracy, sensitivity = (results[name]["value"] for name in ("accuracy", "sensitivity"))
    print(f"test accuracy {accuracy:.4f}, sensitivity {sensitivity:.4f}")
    print(f"report.html, metrics.json and predictions.csv are in {run.folder / 'test'}")


if __name__ == "__main__":
    run_script(main)
