//! `postroad top`: what waits and what flows, live in the terminal.

mod sample;
mod screen;

use anyhow::Context as _;
use std::{io::IsTerminal, time::Duration};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers},
};
use tokio::{sync::mpsc, time};

use self::{sample::Sample, screen::Screenful};
use super::{Operator, OperatorError};
use crate::cli::queue::{GroupedBy, TopArgs};

/// How long one wait for a key lasts, so that the thread ends soon after the command.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// Runs `postroad top`.
///
/// # Errors
/// Standard output is no terminal, or cannot be used as one.
pub async fn top(args: &TopArgs) -> anyhow::Result<String> {
    if !std::io::stdout().is_terminal() {
        let cause = "standard output is no terminal; `postroad queue list` prints the same once".to_owned();
        return Err(OperatorError::CommandLine { cause }.into());
    }
    let operator = Operator::connect(&args.target)?;
    let mut terminal = ratatui::try_init()?;
    let ended = Top { operator, by: args.by, interval: args.interval.0 }.run(&mut terminal).await;
    ratatui::try_restore()?;
    ended.map(|()| String::new())
}

struct Top {
    operator: Operator,
    by: GroupedBy,
    interval: Duration,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    /// Count by the next thing.
    Next,
    /// The terminal has another size.
    Redraw,
}

impl Top {
    async fn run(mut self, terminal: &mut DefaultTerminal) -> anyhow::Result<()> {
        let mut wishes = wishes()?;
        let mut every = time::interval(self.interval);
        every.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let mut before: Option<Sample> = None;
        let mut shown = Screenful::starting(&self.operator.addresses, self.by);
        loop {
            terminal.draw(|frame| screen::draw(frame, &shown))?;
            tokio::select! {
                wish = wishes.recv() => match wish {
                    None | Some(Wish::Quit) => return Ok(()),
                    Some(Wish::Next) => {
                        self.by = next(self.by);
                        every.reset_immediately();
                    }
                    Some(Wish::Redraw) => {}
                },
                _ = every.tick() => {
                    // A cluster that does not answer for a while is shown as that, and asked again.
                    match Sample::read(&self.operator, self.by).await {
                        Ok(sample) => {
                            shown = Screenful::of(&self.operator.addresses, self.by, &sample, before.as_ref());
                            before = Some(sample);
                        }
                        Err(error) => shown.problem = Some(error.to_string()),
                    }
                }
            }
        }
    }
}

fn next(by: GroupedBy) -> GroupedBy {
    match by {
        GroupedBy::Site => GroupedBy::Tenant,
        GroupedBy::Tenant => GroupedBy::Pool,
        GroupedBy::Pool => GroupedBy::Source,
        GroupedBy::Source => GroupedBy::SenderDomain,
        GroupedBy::SenderDomain => GroupedBy::Site,
    }
}

/// Reads keys in a thread of its own, because the terminal can only be waited for.
fn wishes() -> anyhow::Result<mpsc::Receiver<Wish>> {
    let (sender, receiver) = mpsc::channel(16);
    let reading = postroad_env::thread("keys", move || {
        while !sender.is_closed() {
            match event::poll(KEY_WAIT) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if let Some(wish) = wish_of(&event)
                        && sender.blocking_send(wish).is_err()
                    {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    reading.context("cannot start a thread that reads keys")?;
    Ok(receiver)
}

fn wish_of(event: &Event) -> Option<Wish> {
    match event {
        Event::Resize(..) => Some(Wish::Redraw),
        Event::Key(KeyEvent { code: KeyCode::Char('c'), modifiers: KeyModifiers::CONTROL, .. }) => {
            Some(Wish::Quit)
        }
        Event::Key(KeyEvent { code: KeyCode::Char('q') | KeyCode::Esc, .. }) => Some(Wish::Quit),
        Event::Key(KeyEvent { code: KeyCode::Char('b') | KeyCode::Tab, .. }) => Some(Wish::Next),
        _ => None,
    }
}
