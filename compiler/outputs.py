"""Check what a compile writes beside its result before it begins."""

from pathlib import Path

from edgec.compiler.bundle.bundle import check_destination
from edgec.compiler.calibration.accuracy import load_metric
from edgec.compiler.calibration.ranges_file import read_ranges_file
from edgec.compiler.codegen.link import driver
from edgec.compiler.lowering.tuning_records import Database
from edgec.compiler.options import CompileOptions
from edgec.compiler.support.files import check_output_file, check_output_folder
from edgec.compiler.trust.identities import load_recipient
from edgec.compiler.trust.keys import load_signing_key
from edgec.targets import Target


def check_before_work(output: Path, options: CompileOptions, target: Target) -> None:
    """Refuse what would fail in the last phase: folders, files, records, the metric, the linker.

    Raises:
        OutputError: something cannot be written.
        BadInputError: the records cannot be read.
        UsageError: the metric does not exist.
        ToolchainError: the target's linker is missing.
        KeyFileError: a key cannot be read.
    """
    check_destination(output)
    if options.dump is not None:
        check_output_folder(options.dump)
    if options.records is not None:
        Database.read(options.records)
    for given in (options.compression, options.quantization):
        if given is not None and given.report is not None:
            check_output_file(given.report)
    check_before_transform(options)
    driver(target)
    for key in options.sign:
        load_signing_key(key)
    for recipient in options.encrypt_for:
        load_recipient(recipient)


def check_before_transform(options: CompileOptions) -> None:
    """Refuse what would fail after compression and quantization: their files, and the metric.

    Raises:
        OutputError: a file cannot be written.
        CalibrationError: the ranges of clients cannot be read.
        UsageError: the metric does not exist.
    """
    if options.compression is not None and options.compression.checkpoint is not None:
        check_output_file(options.compression.checkpoint, make_folders=True)
    if options.quantization is not None:
        cache = options.quantization.cache
        if cache is not None and not cache.is_file():
            check_output_file(cache, make_folders=True)
        if options.quantization.ranges is not None:
            read_ranges_file(options.quantization.ranges)
    load_metric(options.samples.metric)
