//! deploy/README.md works when it is followed as it is written: the commands of the page itself are executed, on machines
//! that are namespaces of this one.

use std::{
    path::Path,
    process::{Command, Output},
};

use postroad_testkit::process::postroad_binary;

const PROJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The page's commands and its policy, as files that the script reads.
struct Page(Vec<(&'static str, String)>);

impl Page {
    /// Reads the page up to the first heading. A block belongs to the file whose words it has; the others are for each node.
    fn read() -> Self {
        let page = std::fs::read_to_string(Path::new(PROJECT).join("deploy/README.md")).expect("it is there");
        let page = page.split("\n## ").next().unwrap_or_default();
        let blocks = |language: &str| -> Vec<String> {
            let fence = format!("```{language}\n");
            page.split(&fence)
                .skip(1)
                .filter_map(|rest| rest.split("```").next())
                .map(str::to_owned)
                .collect()
        };
        let files = [
            ("init.sh", "postroad cluster init"),
            ("apply.sh", "postroad apply"),
            ("check.sh", "/readyz"),
            ("send.sh", "smtp://"),
        ];
        let mut commands = blocks("sh");
        let mut page = vec![("policy.yaml", blocks("yaml").concat())];
        for (file, words) in files {
            let at = commands.iter().position(|block| block.contains(words));
            let at = at.unwrap_or_else(|| panic!("no block of the page has `{words}`"));
            page.push((file, commands.remove(at)));
        }
        page.push(("node.sh", commands.concat()));
        Self(page)
    }
}

/// Runs a command as the first process of its own namespaces.
fn isolated(command: &[&str]) -> std::io::Result<Output> {
    let namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"];
    Command::new("unshare").args(namespaces).args(command).output()
}

#[test]
fn the_deploy_page_works_as_it_is_written() {
    let page = Page::read();
    if !isolated(&["true"]).is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this test needs root and namespaces (`unshare --mount --net --pid`)");
        return;
    }
    let binary = postroad_binary().expect("it builds");
    let dir = tempfile::tempdir().expect("a directory can be made");
    // The users of the test's machines read what is in it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("it is ours");
    let (blocks, work) = (dir.path().join("blocks"), dir.path().join("work"));
    for directory in [&blocks, &work] {
        std::fs::create_dir(directory).expect("it can be made");
    }
    for (name, text) in page.0 {
        std::fs::write(blocks.join(name), text).expect("it can be written");
    }
    let script = Path::new(PROJECT).join("tests/deploy/follow.sh");
    let paths = [script.as_path(), &blocks, binary, Path::new(PROJECT), &work];
    let paths = paths.map(|path| path.to_str().expect("paths are text"));
    let output = isolated(&[&["sh"], &paths[..]].concat()).expect("unshare can be run");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("== followed"), "{text}");
}
