"""The table: every row of bad input and faults, what makes it, and what each command has promised to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from faults import file_rows as files
from faults import merge_rows as merges
from faults import model_rows as models
from faults import run_rows as runs
from faults.arena import OWN, SHARDS, Arena
from faults.commands import COMMANDS, WRITING, Expect

READS_NOTHING = "not part of what this command looks at"
ONLY_WRITING = "this command writes no checkpoint"
ONLY_MERGE = "nothing is merged"
MEAN = "a shared tensor gets the mean over the layers that use it"
LINKS = "people keep weights on other disks; tensors alone are read"
INDEX_ALONE = "transformers takes the shards' names alone from the index; the tensors are the right ones"
JSON_LAST = "transformers reads it itself, and takes the last one"
IGNORED = "transformers ignores it: nothing of it is loaded"
CASE = "nothing is written"
OTHERS = "another architecture is not this package's"
ANEW = "transformers makes it anew and says so; a shared tensor is refused"
NO_METADATA = "transformers' own index needs it; convert-checkpoint writes it"


@dataclass(frozen=True)
class Case:
    """One way to bring about a row.

    Attributes:
        row: its number.
        name: of the way.
        make: breaks an arena.
        expects: command -> what is promised.
    """

    row: int
    name: str
    make: Callable[[Arena], Any]
    expects: dict[str, Expect] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.row:02}-{self.name.replace(' ', '-')}"


def refused(says: str) -> Expect:
    return Expect("refused", says)


def accepted(says: str = "", why: str = "", *, same: bool = True) -> Expect:
    return Expect("accepted", says, why, same)


def library(says: str, why: str = "") -> Expect:
    return Expect("library", says, why)


def told(says: str) -> Expect:
    return Expect("told", says)


def not_here(why: str) -> Expect:
    return Expect("n/a", why=why)


def broken(row: int, name: str, make: Callable[[Arena], Any], says: str, load: Expect, **others: Expect) -> Case:
    """Refused by whatever writes, told by inspect and by verify, with the same words; `load` is from_pretrained's."""
    expects = {command: refused(says) for command in WRITING}
    expects |= {"inspect": told(says), "verify": told(""), "from_pretrained": load}
    return Case(row, name, make, expects | _named(others))


def fine(row: int, name: str, make: Callable[[Arena], Any], says: str, why: str, **others: Expect) -> Case:
    """Accepted by all; verify tells that the files are not the ones that were written."""
    expects = {command: accepted(says, why) for command in WRITING}
    expects |= {"inspect": accepted("", why), "verify": told(""), "from_pretrained": accepted("", why)}
    return Case(row, name, make, expects | _named(others))


def running(row: int, name: str, make: Callable[[Arena], Any], expect: Expect, **others: Expect) -> Case:
    """What happens to a command that writes; the others write nothing."""
    expects = {command: expect if command in WRITING else not_here(ONLY_WRITING) for command in COMMANDS}
    return Case(row, name, make, expects | _named(others))


def merging(row: int, name: str, make: Callable[[Arena], Any], expect: Expect) -> Case:
    """What only merge can meet."""
    return Case(row, name, make, {c: expect if c == "merge" else not_here(ONLY_MERGE) for c in COMMANDS})


def _named(expects: dict[str, Expect]) -> dict[str, Expect]:
    names = {
        "convert": ["convert-checkpoint"],
        "quantize": ["quantize", "quantize --method"],
        "extract": ["extract-lora"],
        "load": ["from_pretrained"],
    }
    return {name: expect for word, expect in expects.items() for name in names.get(word, [word])}


B = SHARDS[1]
CONFIG_OF_THE_BASE = accepted(why="the base's config is written")
TOLD_LESS = {"merge": CONFIG_OF_THE_BASE, "extract": accepted(why="an adapter has no config of the model")}
EXTRA = {"inspect": told("extra"), "convert": accepted(why="--allow-unknown copies it", same=False)}
CASES: tuple[Case, ...] = (
    broken(1, "traversing shard name", files.traversing, r"\.\./elsewhere.* is a path", refused("is a path")),
    broken(2, "absolute shard name", files.absolute, "is a path", refused("is a path")),
    broken(2, "drive letter", files.drive, "is a path", refused("")),
    broken(2, "UNC shard name", files.unc, "is a path", refused("")),
    broken(2, "backslash", files.backslash, "is a path", refused("")),
    broken(3, "link out of the tree", files.link_out, "leads out of the checkpoint", accepted(why=LINKS)),
    broken(3, "link to a secret", files.link_to_a_secret, "leads out of the checkpoint", refused("")),
    Case(
        3,
        "links of the hub's cache",
        files.hub_cache,
        {command: accepted(why="the hub's cache links snapshots to blobs") for command in COMMANDS},
    ),
    broken(4, "FIFO", files.fifo, f"{B}.*no regular file", refused("")),
    broken(4, "directory", files.directory, f"{B}.*no regular file", refused("")),
    broken(5, "pickle in a safetensors index", files.bin_in_the_index, r"weights.bin' is no .safetensors", refused("")),
    broken(6, "missing shard", files.missing_shard, f"1 shards do not exist: '{B}'", refused("")),
    broken(
        7,
        "tensor its shard lacks",
        files.tensor_the_shard_lacks,
        f"does not hold: '{OWN} in {B}'",
        accepted(why=INDEX_ALONE),
    ),
    broken(
        8, "tensor the index lacks", files.tensor_the_index_lacks, f"index lacks: '{OWN}", accepted(why=INDEX_ALONE)
    ),
    broken(9, "tensor in two shards", files.tensor_twice, f"stored twice: '{OWN}", refused("")),
    fine(
        10, "index without metadata", files.no_metadata, "", "the output has it", load=library("metadata", NO_METADATA)
    ),
    broken(11, "no weight_map", files.no_weight_map, "weight_map", library("")),
    broken(11, "weight_map is a list", files.list_as_weight_map, "weight_map", library("")),
    broken(
        12,
        "key twice in the index",
        files.key_twice_in_the_index,
        f"names '{OWN}' more than once",
        accepted(why=JSON_LAST),
    ),
    broken(12, "key twice in the config", files.key_twice_in_the_config, "'?num_mem_blocks'?", accepted(why=JSON_LAST)),
    broken(13, "key twice in a header", files.key_twice_in_a_header, f"{B}.*more than once", refused("")),
    broken(14, "single file beside an index", files.rival, "side by side", refused("")),
    broken(15, "empty shard", files.empty_shard, f"{B}.*empty.*Incomplete download", refused("")),
    broken(16, "truncated shard", files.truncated, f"{B}.*ends after.*Incomplete download", refused("")),
    broken(16, "truncated header", files.truncated_header, f"{B}.*Incomplete download", refused("")),
    broken(17, "trailing bytes", files.trailing, f"{B}.*64 bytes follow", refused("")),
    broken(18, "absurd header length", files.long_header, f"{B}.*header in a file of", refused("")),
    broken(19, "large header", files.large_header, f"{B}.*more than the 16777216", refused("")),
    broken(20, "overlapping tensors", files.overlap, f"{B}.*overlaps", refused("")),
    broken(20, "hole", files.hole, f"{B}.*hole", refused("")),
    broken(21, "shape and size disagree", files.wrong_shape, f"{B}.*takes 210 bytes", refused("")),
    broken(22, "unknown dtype", files.unknown_dtype, f"{B}.*'F17' is not known", refused("")),
    broken(23, "mixed dtypes", models.mixed_dtypes, f"{models.LATER}.*F32", refused("")),
    broken(24, "zero-size tensor", models.zero_size, f"{models.NORM} is .0.", library("")),
    *(
        fine(
            25,
            name,
            make,
            f"warning: NaN or infinity in 1 tensors: {models.FIRST}",
            "told with the tensor's name",
            quantize=refused(models.FIRST),
            merge=refused(models.FIRST),
            extract=refused(models.FIRST),
            convert=accepted(f"warning: NaN or infinity in 1 tensors: {models.FIRST}", "told by name", same=False),
            inspect=accepted(why="tensors are not searched"),
            load=accepted(why="loaded as stored", same=False),
        )
        for name, make in (("NaN", models.nan), ("infinity", models.infinity))
    ),
    broken(26, "index not UTF-8", files.not_utf8, "not readable JSON", library("")),
    broken(26, "config not UTF-8", files.config_not_utf8, "config.json", library("")),
    broken(26, "index nested deeply", files.nested, "nested too deeply", library("")),
    broken(26, "config nested deeply", files.nested_config, "config.json", library("")),
    broken(27, "unknown key", models.unknown, r"model\.layers\.2\.extra", accepted(why=IGNORED)),
    broken(27, "look-alike of a key", models.lookalike, "looks like", accepted(why=IGNORED)),
    fine(27, "unknown key allowed", models.unknown_allowed, "", "--allow-unknown copies it", **EXTRA),
    broken(28, "shards alike but for case", files.shards_alike, "one and the same where case", accepted(why=CASE)),
    broken(28, "files alike but for case", files.companions_alike, "one and the same where case", accepted(why=CASE)),
    broken(29, "empty config", files.empty_config, "config.json", library("")),
    broken(29, "config no JSON", files.config_no_json, "config.json", library("")),
    broken(30, "no num_mem_blocks", models.without("num_mem_blocks"), "num_mem_blocks is missing", refused("")),
    broken(30, "no num_attention_heads", models.without("num_attention_heads"), "num_attention_heads", library("")),
    broken(30, "unproven default", models.without("adapter_rank"), "adapter_rank", library("")),
    fine(
        30,
        "proven default",
        models.without("mamba_d_conv"),
        "warning: missing in the config",
        "the shapes prove it",
        **TOLD_LESS,
    ),
    broken(31, "llama", models.config(model_type="llama"), "llama|The base shares it", not_here(OTHERS)),
    broken(31, "zamba2_vl", models.config(model_type="zamba2_vl"), "zamba2_vl", not_here(OTHERS)),
    broken(32, "layer lists that disagree", models.config(hybrid_layer_ids=[2, 3]), r"\[2, 3\]", refused("")),
    *(
        broken(33, f"num_mem_blocks {value!r}", models.config(num_mem_blocks=value), "num_mem_blocks", load)
        for value, load in (
            (0, refused("num_mem_blocks is 0")),
            (-1, refused("num_mem_blocks is -1")),
            (1.5, library("")),
            ("2", library("")),
            (6, refused("num_mem_blocks")),
        )
    ),
    broken(34, "adapter missing", models.no_adapter, "position 3, layer 7", refused("")),
    fine(35, "adapters in wrong slots", models.wrong_slots, "", "its number proves where it belongs"),
    broken(35, "unproven slots", models.wrong_slots_twice, "none of them is where the adapter", refused("")),
    broken(36, "copies that differ", models.divergent, "--resolve", accepted("copies that differ", same=False)),
    fine(
        36,
        "copies that differ resolved",
        models.divergent_resolved,
        "copies that differed",
        "--resolve says what to do",
        convert=accepted("copies that differed", "--resolve says what to do", same=False),
        merge=accepted(why="--resolve says what to do"),
        extract=accepted(why="--resolve says what to do"),
        inspect=told("--resolve"),
        load=accepted("copies that differ", "kept exactly, with a warning", same=False),
    ),
    fine(37, "equal copies", models.expanded, "", "stored once, after comparing every byte"),
    broken(38, "no copy of a shared tensor", models.no_copy, "layers.2.*q_proj", refused("no copy of 1 shared")),
    broken(38, "no copy of another tensor", models.no_own, OWN, accepted(why=ANEW, same=False)),
    broken(39, "vocabulary", models.config(vocab_size=17), "embed_tokens", library("")),
    broken(39, "shape", models.another_shape, f"{OWN} is .7.", library("")),
    Case(
        40,
        "quantized input",
        models.quantized,
        {
            "convert-checkpoint": accepted(why="quantized tensors are kept as they are", same=False),
            **dict.fromkeys(("quantize", "quantize --method", "merge", "extract-lora"), refused("quantized")),
            "inspect": accepted(),
            "verify": accepted(),
            "from_pretrained": accepted(same=False),
        },
    ),
    merging(41, "tensor in one parent only", merges.one_parent_only, refused(OWN)),
    merging(42, "t is NaN", merges.setting(t=float("nan")), refused("t")),
    merging(42, "t above 1", merges.setting(t=1.5), refused("t")),
    merging(42, "t differs within a shared block", merges.setting(t=[0, 1]), accepted(why=MEAN)),
    merging(43, "chat templates differ", merges.other_template, refused("template")),
    merging(44, "a tensor of zeros", merges.zeros, accepted("linear|zero", "combined linearly, counted")),
    merging(45, "aliases that explode", merges.aliases, refused("alias|anchor")),
    merging(45, "Python tags", merges.tags, refused("tag|!!python")),
    broken(46, "pickle alone", files.only_a_pickle, "--allow-pickle", refused("")),
    broken(46, "hostile pickle allowed", files.only_a_pickle_allowed, "posix.mkdir|nothing of it", refused("")),
    broken(46, "hostile pickle of the old format", files.old_pickle, "nothing of it was loaded", refused("")),
    fine(46, "pickles beside safetensors", files.pickles_beside, "are ignored", "nothing reads them"),
    fine(47, "auto_map", files.remote_code, "never run", "nothing runs it"),
    running(48, "occupied destination", runs.occupied, refused("not empty.*--overwrite")),
    running(48, "occupied and --overwrite", runs.occupied_and_overwrite, accepted(why="replaced whole at the end")),
    running(49, "destination is the source", runs.is_the_source, refused("is the source itself")),
    running(49, "destination inside the source", runs.inside_the_source, refused("lies inside the source")),
    running(49, "destination contains the source", runs.contains_the_source, refused("contains the source")),
    running(50, "read-only destination", runs.read_only, refused("Read-only file system")),
    running(51, "too little room", runs.little_room, refused("are to be written")),
    running(52, "full disk", runs.full_disk, refused("No space left on device")),
    running(52, "full disk over an old one", runs.full_disk_over_old, refused("No space left on device")),
    running(54, "SIGINT", runs.interrupted, Expect("130")),
    running(54, "SIGTERM", runs.terminated, Expect("143")),
    running(54, "SIGHUP", runs.hung_up, Expect("129")),
    running(55, "another writer", runs.another_writer, refused("Another run is writing it")),
    running(56, "source changes", runs.source_changes, refused(f"changed while they were read: '{SHARDS[0]}'")),
    Case(
        56,
        "files change under verify",
        runs.source_changes_for_verify,
        {command: not_here("the case above") for command in COMMANDS} | {"verify": told("changed while it was read")},
    ),
    running(57, "out of memory", runs.no_memory, refused("Out of memory")),
    running(57, "peak told first", runs.peak_is_told, Expect("accepted", "peak memory  about", "--dry-run tells it")),
    Case(
        58,
        "stray shard",
        files.stray,
        {command: accepted("are ignored: 'model-00009", "ignored, told, not deleted") for command in WRITING}
        | {
            "inspect": accepted("are ignored: 'model-00009"),
            "verify": told("not written with the checkpoint"),
            "from_pretrained": accepted(why="ignored"),
        },
    ),
    running(59, "umask", runs.strict_umask, accepted(why="modes follow the umask")),
)
