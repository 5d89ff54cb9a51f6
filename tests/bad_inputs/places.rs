//! What stands at a path: nothing, folders, links, files that cannot be read.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::{Case, Done, Folder, IDS, Refused, Verdict, battery, case, ids_model, text, train};

/// The path that `build` gives, as MODEL.
fn model(name: &str, verdict: Verdict, build: impl Fn(&Folder) -> String + 'static) -> Case {
    case(name, verdict, move |folder| {
        let model = build(folder);
        train(model, folder.write("data.jsonl", IDS))
    })
}

/// The path that `build` gives, as DATA.
fn data(name: &str, fragment: &'static str, build: impl Fn(&Folder) -> String + 'static) -> Case {
    case(name, Refused(fragment), move |folder| train(text(ids_model()), build(folder)))
}

#[test]
fn models_that_are_none() {
    battery(&[
        model("folder", Done, Folder::model),
        model("file", Done, |folder| folder.model() + "/model.safetensors"),
        model("a linked folder", Done, |folder| {
            symlink(ids_model(), folder.at("m")).unwrap();
            folder.name("m")
        }),
        model("links within the folder", Done, |folder| {
            let model = folder.model();
            let at = |name: &str| folder.at("model").join(name);
            fs::create_dir(at("inside")).unwrap();
            for name in ["config.json", "model.safetensors"] {
                fs::rename(at(name), at("inside").join(name)).unwrap();
                symlink(Path::new("inside").join(name), at(name)).unwrap();
            }
            model
        }),
        model("a snapshot of a cache", Done, |folder| {
            let (blobs, snapshot) = (folder.at("hub/m/blobs"), folder.at("hub/m/snapshots/abc"));
            fs::create_dir_all(&blobs).unwrap();
            fs::create_dir_all(&snapshot).unwrap();
            for name in ["config.json", "model.safetensors"] {
                fs::copy(ids_model().join(name), blobs.join(name)).unwrap();
                symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
            }
            folder.name("hub/m/snapshots/abc")
        }),
        model("a link that was typed", Done, |folder| {
            let model = folder.model();
            let weights = folder.at("model/model.safetensors");
            fs::rename(&weights, folder.at("elsewhere.safetensors")).unwrap();
            symlink(folder.at("elsewhere.safetensors"), &weights).unwrap();
            model + "/model.safetensors"
        }),
        model(
            "a link out of the folder",
            Refused("model.safetensors: is a link out of"),
            |folder| {
                let model = folder.model();
                let weights = folder.at("model/model.safetensors");
                fs::rename(&weights, folder.at("elsewhere.safetensors")).unwrap();
                symlink(folder.at("elsewhere.safetensors"), &weights).unwrap();
                model
            },
        ),
        model(
            "a tokenizer that is another file",
            Refused("tokenizer.json: is a link out of"),
            |folder| {
                let model = folder.model();
                symlink("/etc/passwd", folder.at("model/tokenizer.json")).unwrap();
                model
            },
        ),
        model("absent", Refused("no such file or folder"), |folder| folder.name("absent")),
        model("no name", Refused("error: "), |_| String::new()),
        model("a dot", Refused("error: "), |_| ".".into()),
        model("org/name", Refused("org/name"), |_| "org/name".into()),
        model("org/../name", Refused("org/../name"), |_| "org/../name".into()),
        model("a name of 5000 letters", Refused("error: "), |_| "n".repeat(5000)),
        model("escape codes", Refused("\\u{1b}"), |_| "\u{1b}[31mred\u{7}".into()),
        model("empty folder", Refused("m: "), |folder| {
            fs::create_dir(folder.at("m")).unwrap();
            folder.name("m")
        }),
        model("no config", Refused("config.json"), |folder| {
            let model = folder.model();
            fs::remove_file(folder.at("model/config.json")).unwrap();
            model
        }),
        model("weights a folder", Refused("model.safetensors"), |folder| {
            let model = folder.model();
            fs::remove_file(folder.at("model/model.safetensors")).unwrap();
            fs::create_dir(folder.at("model/model.safetensors")).unwrap();
            model
        }),
        model("config a folder", Refused("config.json"), |folder| {
            let model = folder.model();
            fs::remove_file(folder.at("model/config.json")).unwrap();
            fs::create_dir(folder.at("model/config.json")).unwrap();
            model
        }),
        model("link to itself", Refused("loop"), |folder| {
            symlink(folder.at("loop"), folder.at("loop")).unwrap();
            folder.name("loop")
        }),
        model("link to nothing", Refused("link"), |folder| {
            symlink(folder.at("absent"), folder.at("link")).unwrap();
            folder.name("link")
        }),
        model("weights a link to nothing", Refused("model.safetensors"), |folder| {
            let model = folder.model();
            fs::remove_file(folder.at("model/model.safetensors")).unwrap();
            symlink(folder.at("absent"), folder.at("model/model.safetensors")).unwrap();
            model
        }),
        model("pickle of PyTorch", Refused("pytorch_model.bin"), |folder| {
            let model = folder.model();
            fs::rename(folder.at("model/model.safetensors"), folder.at("model/pytorch_model.bin"))
                .unwrap();
            model
        }),
        model("a device", Refused("/dev/null"), |_| "/dev/null".into()),
        model("an endless device", Refused("/dev/zero"), |_| "/dev/zero".into()),
        model("weights 3 GB of holes", Refused("model.safetensors"), |folder| {
            let model = folder.model();
            let file = fs::File::create(folder.at("model/model.safetensors")).unwrap();
            file.set_len(3 << 30).unwrap();
            model
        }),
        model("config 3 GB of holes", Refused("config.json"), |folder| {
            let model = folder.model();
            let file = fs::File::create(folder.at("model/config.json")).unwrap();
            file.set_len(3 << 30).unwrap();
            model
        }),
    ]);
}

#[test]
fn data_that_is_none() {
    battery(&[
        data("absent", "absent.jsonl", |folder| folder.name("absent.jsonl")),
        data("a folder", "d.jsonl", |folder| {
            fs::create_dir(folder.at("d.jsonl")).unwrap();
            folder.name("d.jsonl")
        }),
        data("link to itself", "loop.jsonl", |folder| {
            symlink(folder.at("loop.jsonl"), folder.at("loop.jsonl")).unwrap();
            folder.name("loop.jsonl")
        }),
        data("no ending", ".jsonl", |folder| folder.write("data", IDS)),
        data("another ending", ".jsonl", |folder| folder.write("data.parquet", b"PAR1")),
        data("a device", "/dev/zero", |_| "/dev/zero".into()),
        data("escape codes", "\\u{1b}", |folder| folder.name("\u{1b}[31m.jsonl")),
    ]);
}

#[test]
fn files_that_may_not_be_read() {
    let probe = Folder::new();
    let file = probe.write("probe", "");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
    if fs::read(&file).is_ok() {
        println!("skipped: this user may read everything");
        return;
    }
    let locked = |folder: &Folder, name: &str| {
        fs::set_permissions(folder.at(name), fs::Permissions::from_mode(0o0)).unwrap();
    };
    battery(&[
        model("weights", Refused("model.safetensors: Permission denied"), move |folder| {
            let model = folder.model();
            locked(folder, "model/model.safetensors");
            model
        }),
        data("data", "data.jsonl: Permission denied", move |folder| {
            let data = folder.write("data.jsonl", IDS);
            locked(folder, "data.jsonl");
            data
        }),
    ]);
}
