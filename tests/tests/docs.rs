//! The documentation as a whole: an order that has every page, links that lead somewhere, and code blocks that are what they
//! say they are. What a transcript prints is checked in `transcripts.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Component, Path, PathBuf},
    process::{Command, Stdio},
};

use postroad_tests::{files, files_in, relative, root};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

const SUMMARY: &str = "docs/SUMMARY.md";

/// What one page has that others, or a reader, depend on.
#[derive(Default)]
struct Page {
    /// Targets of links, as they are written, with their lines.
    links: Vec<(usize, String)>,
    /// The anchors of its headings.
    anchors: BTreeSet<String>,
    /// Fenced blocks: line, language, text.
    blocks: Vec<(usize, String, String)>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let line = |at: usize| text[..at].matches('\n').count() + 1;
        let (mut heading, mut block) = (None, None);
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push((line(range.start), dest_url.into_string()));
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => page.add_anchor(&heading.take().unwrap_or_default()),
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => {
                    block = Some((line(range.start), language.into_string(), String::new()));
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some((_, _, content)) = &mut block {
                        content.push_str(&text);
                    }
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        page
    }

    /// Adds the anchor that GitHub and mdBook make of a heading; a second one of the same words gets a number.
    fn add_anchor(&mut self, heading: &str) {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String =
            kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|number| format!("{anchor}-{number}"));
        let mut free = std::iter::once(anchor.clone()).chain(numbered);
        let anchor = free.find(|anchor| !self.anchors.contains(anchor)).expect("numbers do not end");
        self.anchors.insert(anchor);
    }
}

/// Every Markdown page of the tree, by its path from the root.
fn pages() -> BTreeMap<String, Page> {
    let markdown = files().into_iter().filter(|file| file.extension().is_some_and(|e| e == "md"));
    let page = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (relative(&file), Page::read(&text))
    };
    markdown.map(page).collect()
}

/// Where a relative link of a page leads: a path from the root, and an anchor.
fn target(page: &str, link: &str) -> (String, Option<String>) {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    if path.is_empty() {
        return (page.to_owned(), anchor.map(str::to_owned));
    }
    let mut at = PathBuf::new();
    for part in Path::new(page).parent().unwrap_or(Path::new("")).join(path).components() {
        match part {
            Component::ParentDir => drop(at.pop()),
            part => at.push(part),
        }
    }
    (at.display().to_string(), anchor.map(str::to_owned))
}

fn is_relative(link: &str) -> bool {
    !["http:", "https:", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let mut problems = Vec::new();
    for (name, page) in &pages {
        for (line, link) in page.links.iter().filter(|(_, link)| is_relative(link)) {
            let (path, anchor) = target(name, link);
            let is_there = root().join(&path).exists();
            let has_anchor = anchor
                .is_none_or(|anchor| pages.get(&path).is_some_and(|page| page.anchors.contains(&anchor)));
            if !is_there || !has_anchor {
                problems.push(format!("{name}:{line}: {link}"));
            }
        }
    }
    assert!(problems.is_empty(), "links that lead nowhere:\n{}", problems.join("\n"));
}

#[test]
fn the_summary_has_every_page_of_the_documentation_once() {
    let pages = pages();
    let mut listed: Vec<String> =
        pages[SUMMARY].links.iter().map(|(_, link)| target(SUMMARY, link).0).collect();
    let mut pages: Vec<String> = files_in(&root().join("docs")).iter().map(|file| relative(file)).collect();
    pages.retain(|page| page.ends_with(".md") && page != SUMMARY);
    listed.sort();
    assert_eq!(listed, pages);
}

#[test]
fn code_blocks_are_what_they_say() {
    let mut problems = Vec::new();
    for (name, page) in pages() {
        for (line, language, text) in &page.blocks {
            if let Err(problem) = check_block(language, text) {
                problems.push(format!("{name}:{line}: {problem}"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

fn check_block(language: &str, text: &str) -> Result<(), String> {
    match language {
        "sh" | "bash" => shell(language, text),
        "toml" => text.parse::<toml::Table>().map(drop).map_err(|error| error.to_string()),
        "yaml" => {
            serde_yaml_ng::from_str::<serde_yaml_ng::Value>(text).map(drop).map_err(|error| error.to_string())
        }
        "json" => {
            serde_json::from_str::<serde_json::Value>(text).map(drop).map_err(|error| error.to_string())
        }
        // Transcripts are carried out by another test.
        "console" | "text" | "rust" | "proto" | "python" => Ok(()),
        "" => Err("a block without a language; plain text is `text`".to_owned()),
        other => Err(format!("unknown language `{other}`")),
    }
}

/// Has a shell read a script without running it.
fn shell(shell: &str, script: &str) -> Result<(), String> {
    let mut command = Command::new(shell);
    command.arg("-n").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = |error| format!("{shell}: {error}");
    let mut running = command.spawn().map_err(failed)?;
    let mut input = running.stdin.take().expect("it is piped");
    input.write_all(script.as_bytes()).map_err(failed)?;
    drop(input);
    let output = running.wait_with_output().map_err(failed)?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn pages_are_read_as_readers_and_browsers_read_them() {
    let page = Page::read("# A `b`: c, *d*\n\n[x](y.md#z)\n\n## Again\n## Again\n\n```sh\n[no](link)\n```\n");
    assert_eq!(page.links, [(3, "y.md#z".to_owned())]);
    assert_eq!(page.anchors.iter().map(String::as_str).collect::<Vec<_>>(), ["a-b-c-d", "again", "again-1"]);
    assert_eq!(page.blocks, [(8, "sh".to_owned(), "[no](link)\n".to_owned())]);
    let check = |page: &str, link: &str, path: &str, anchor: Option<&str>| {
        assert_eq!(target(page, link), (path.to_owned(), anchor.map(str::to_owned)), "{page} {link}");
    };
    check("docs/a.md", "b.md", "docs/b.md", None);
    check("docs/a.md", "../README.md#x", "README.md", Some("x"));
    check("README.md", "#x", "README.md", Some("x"));
    check("docs/x/a.md", "../adr/", "docs/adr", None);
    check_block("sh", "if true; then echo; fi").unwrap();
    check_block("sh", "if true; then").unwrap_err();
    check_block("yaml", "a: [b").unwrap_err();
    check_block("", "x").unwrap_err();
}
