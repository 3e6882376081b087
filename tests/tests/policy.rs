//! `postroad get`, `describe`, `diff`, `export`, `edit` and `delete` as processes, one after the other on one cluster.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, process::Output};

use postroad_testkit::{dev::Dev, process::postroad_binary};
use tokio::process::Command;

/// An operator, and the directory with the operator's files.
struct Operator {
    dev: SocketAddr,
    files: tempfile::TempDir,
}

impl Operator {
    async fn postroad(&self, editor: &str, arguments: &[&str]) -> Output {
        let binary = postroad_env::blocking(postroad_binary).await.expect("no panic").expect("it builds");
        let mut command = Command::new(binary);
        command.args(arguments).args(["--server", &self.dev.to_string()]).kill_on_drop(true);
        command.current_dir(self.files.path()).env("EDITOR", editor).env_remove("VISUAL");
        command.env("TMPDIR", self.files.path()).stdin(std::process::Stdio::null());
        command.output().await.expect("the binary starts")
    }

    /// Runs a command; returns what it printed.
    async fn run(&self, editor: &str, arguments: &[&str], status: i32) -> String {
        let output = self.postroad(editor, arguments).await;
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        text
    }

    async fn check(&self, arguments: &[&str], status: i32, part: &str) {
        let text = self.run("false", arguments, status).await;
        assert!(text.contains(part), "{arguments:?}: {text}");
    }

    /// An editor that is a script; `$1` is the file.
    fn editor(&self, name: &str, script: &str) -> String {
        let path = self.files.path().join(name);
        fs::write(&path, format!("#!/bin/sh\nset -eu\n{script}\n")).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path.display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.files.path().join(name), text).expect("it can be written");
    }

    fn drafts(&self) -> Vec<String> {
        let names =
            fs::read_dir(self.files.path()).expect("it is there").map(|entry| entry.expect("readable"));
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("postroad-edit-")).collect()
    }
}

const POLICY: &str = "
sources: [{name: one, helo: one.example}, {name: two, helo: two.example, nodes: [7]}]
pools: [{name: main, sources: [{source: one}]}]
tenants: [{name: acme, pool: main, domains: [acme.example]}]
";

#[tokio::test]
async fn the_policy_in_force_is_shown_compared_edited_and_deleted_item_by_item() {
    let dev = Dev::start(&[]).await.unwrap_or_else(|error| panic!("{error:#}"));
    let files = tempfile::tempdir().expect("a directory can be made");
    let operator = Operator { dev: dev.operator(), files };
    operator.write("policy.yaml", POLICY);
    operator.check(&["diff", "-f", "policy.yaml"], 5, "would be created: tenant acme").await;
    let changed = format!("changed 4 items in `{}`; the directory is at", operator.dev);
    operator.check(&["apply", "-f", "policy.yaml"], 0, &changed).await;
    operator.check(&["diff", "-f", "policy.yaml"], 0, "no difference").await;
    operator.check(&["diff", "-f", "policy.yaml", "--all"], 5, "only in the cluster: tenant demo").await;

    operator.check(&["get", "tenants"], 0, "acme    main     -         acme.example").await;
    operator.check(&["get", "source", "two", "-o", "json"], 0, "\"helo\": \"two.example\"").await;
    operator.check(&["get", "source", "three"], 3, "`source three` does not exist").await;
    operator.check(&["describe", "pool", "main"], 0, "used by  tenant acme").await;
    operator.check(&["describe", "source", "two"], 0, "none: mail that needs this source waits").await;
    operator
        .check(&["export", "tenants", "acme", "--file", "acme.yaml"], 0, "wrote the policy at revision")
        .await;
    operator.check(&["export", "--file", "acme.yaml"], 1, "cannot write `acme.yaml`").await;
    operator.check(&["diff", "-f", "acme.yaml"], 0, "no difference").await;

    edits(&operator).await;

    operator.check(&["delete", "sources", "one", "--yes"], 1, "pool main").await;
    operator.check(&["delete", "sources", "three", "--yes"], 3, "`source three` does not exist").await;
    operator.check(&["delete", "sources", "three", "--yes", "--ignore-missing"], 0, "changed 0 items").await;
    operator.check(&["delete", "sources", "two"], 1, "`--yes` is needed").await;
    operator.check(&["delete", "sources", "two"], 1, &format!("Delete in `{}`?", operator.dev)).await;
    operator.check(&["get", "source", "two"], 0, "two.example").await;
    operator.check(&["delete", "sources", "two", "two", "--yes"], 0, "removed: source two").await;
    operator.check(&["get", "source", "two"], 3, "does not exist").await;
}

async fn edits(operator: &Operator) {
    let edit = ["edit", "tenant", "acme"];
    let text = operator.run("true", &edit, 0).await;
    assert_eq!(text, "nothing was changed\n");
    let text = operator.run("false", &edit, 1).await;
    assert!(text.contains("the editor `false` ended with"), "{text}");
    let adds = operator.editor("adds", "sed -i 's/- acme.example/- acme.example\\n  - acme.test/' \"$1\"");
    let text = operator.run(&adds, &edit, 0).await;
    assert!(text.contains("domains: [acme.example] -> [acme.example, acme.test]"), "{text}");

    // The first save has an error; the file is opened again with it at the top, and the second one is good.
    let corrects = operator.editor(
        "corrects",
        "if grep -q '^# error: ' \"$1\"; then sed -i 's/pool: nowhere/pool: main/; s/acme.test/acme.net/' \"$1\"\n\
         else sed -i 's/pool: main/pool: nowhere/' \"$1\"; fi",
    );
    let text = operator.run(&corrects, &edit, 0).await;
    assert!(text.contains("[acme.example, acme.test] -> [acme.example, acme.net]"), "{text}");

    // An item that is taken out of the file stays, and is named.
    let removes = operator.editor("removes", "echo 'sources: []' > \"$1\"");
    let text = operator.run(&removes, &["edit", "source", "two"], 0).await;
    assert!(text.contains("not deleted, though it is no longer in the file: source two"), "{text}");
    operator.check(&["get", "source", "two"], 0, "two.example").await;
    let text = operator.run("no-such-editor", &edit, 1).await;
    assert!(text.contains("there is no editor `no-such-editor` on this machine"), "{text}");

    for draft in operator.drafts() {
        fs::remove_file(operator.files.path().join(draft)).expect("it is there");
    }
    // Somebody else changes the tenant while the editor is open: neither change is lost.
    let binary = postroad_binary().expect("it builds").display().to_string();
    let meanwhile = operator.files.path().join("policy.yaml").display().to_string();
    let script = format!(
        "{binary} apply -f {meanwhile} --server {}\nsed -i 's/acme.net/acme.org/' \"$1\"",
        operator.dev
    );
    let text = operator.run(&operator.editor("meanwhile", &script), &edit, 1).await;
    assert!(text.contains("your version is kept in") && text.contains("somebody else"), "{text}");
    let [draft] = &operator.drafts()[..] else { panic!("{:?}", operator.drafts()) };
    let kept = fs::read_to_string(Path::new(operator.files.path()).join(draft)).expect("it is kept");
    assert!(kept.contains("acme.org"), "{kept}");
    operator.check(&["get", "tenants", "acme", "-o", "yaml"], 0, "- acme.example\n  pool: main").await;
}
