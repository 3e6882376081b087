//! Where lines go: into a bounded buffer, and from there, by one thread, to the process log and to a file.
//!
//! A line is made on the caller's thread and copied into the buffer under a lock that nobody holds while writing.
//! The thread takes all that gathered since the last time, so the number of writes depends on time and not on mail.
//! A process that ends by itself loses what gathered in the last [`GATHER`]; one that is stopped loses nothing.

use std::{
    cell::RefCell,
    fs::{self, File, Metadata, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use postroad_core::Timestamp;

use super::{Event, LeftOut, Record, line};
use crate::{LogAddresses, LogFormat, own_metrics::MailLogMetrics};

/// How long lines gather before they are written.
const GATHER: Duration = Duration::from_millis(25);
/// How often the writer checks whether the file was renamed.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the writer reports lines that are missing.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How often an error of the same file is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);
/// What is wrong with the file; each is logged on its own, so that none hides another.
#[derive(Clone, Copy)]
enum Complaint {
    /// Lines are lost.
    Lost,
    /// The path leads nowhere, and the file that is open is kept.
    NotReplaced,
}

impl Complaint {
    fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "cannot write the mail log: its lines are lost until it can be written",
            Self::NotReplaced => {
                "cannot open the mail log again: its lines go to the renamed file until it can be opened"
            }
        }
    }
}

/// A log shipper reads the mail log as a member of the service's group, whatever the umask. A file system without modes
/// may refuse them; the log does not depend on them.
const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;
/// Written to the process log at a time, so that its other lines get through in between.
const PIECE_BYTES: usize = 64 << 10;

static MAIL_LOG: OnceLock<Arc<Shared>> = OnceLock::new();

/// What the mail log does.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) format: LogFormat,
    pub(crate) addresses: LogAddresses,
    pub(crate) file: Option<PathBuf>,
    /// How often to check whether the file was renamed.
    pub(crate) look_every: Duration,
    pub(crate) buffer_bytes: usize,
    /// Lines in a second of each event that clients can cause as often as they like.
    pub(crate) limited_lines_per_sec: u32,
}

/// The running mail log of this process; to be stopped at the end.
#[derive(Debug)]
pub(crate) struct MailLog {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    /// The log filter lets the target [`TARGET`](super::TARGET) through.
    to_process_log: AtomicBool,
    buffer: Mutex<Buffer>,
    wake: Condvar,
}

/// What has gathered.
#[derive(Debug, Default)]
struct Buffer {
    lines: Vec<u8>,
    count: u64,
    /// Lines that found no room, not reported yet.
    lost: u64,
    rejected: Limit,
    logins: Limit,
    reopen: bool,
    stop: bool,
}

/// How many lines of one event were written in this second, and how many were left out and not reported yet.
#[derive(Debug, Default)]
struct Limit {
    second: u64,
    lines: u32,
    omitted: u64,
}

/// Returns true when somebody reads the mail log: only then a record is worth making.
#[must_use]
pub fn is_enabled() -> bool {
    MAIL_LOG.get().is_some_and(|log| log.is_read())
}

/// Writes a record; costs nothing where nobody reads it, and never waits.
pub fn write(record: &impl Record) {
    if let Some(log) = MAIL_LOG.get().filter(|log| log.is_read()) {
        log.write(postroad_env::wall(), record);
    }
}

/// Opens the file of the mail log again, as after it was renamed; without a file this does nothing.
pub fn reopen() {
    if let Some(log) = MAIL_LOG.get() {
        log.reopen();
    }
}

impl MailLog {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened, or the system has no thread for us.
    pub(crate) fn start(options: Options, to_process_log: bool) -> io::Result<Self> {
        let open = |path: &PathBuf| LogFile::open(path, options.look_every);
        let file = options.file.as_ref().map(open).transpose()?;
        let to_process_log = AtomicBool::new(to_process_log);
        let shared =
            Arc::new(Shared { options, to_process_log, buffer: Mutex::default(), wake: Condvar::new() });
        let writer = Writer { shared: Arc::clone(&shared), file, metrics: MailLogMetrics::new() };
        let thread = postroad_env::thread("mail-log", || writer.run())?;
        Ok(Self { shared, thread })
    }

    /// Says whether lines go to the process log.
    pub(crate) fn set_to_process_log(&self, to_process_log: bool) {
        self.shared.to_process_log.store(to_process_log, Ordering::Relaxed);
    }

    /// Lets [`write`] find it; the first one stays.
    pub(crate) fn publish(&self) {
        let _ = MAIL_LOG.set(Arc::clone(&self.shared));
    }

    /// Asks the thread to write what has gathered and to end.
    pub(crate) fn stop(&self) {
        self.shared.buffer.lock().stop = true;
        self.shared.wake.notify_one();
    }

    /// Returns true once the thread has ended.
    pub(crate) fn has_stopped(&self) -> bool {
        self.thread.is_finished()
    }
}

impl Shared {
    fn reopen(&self) {
        self.buffer.lock().reopen = true;
        self.wake.notify_one();
    }

    fn is_read(&self) -> bool {
        self.to_process_log.load(Ordering::Relaxed) || self.options.file.is_some()
    }

    fn write(&self, at: Timestamp, record: &impl Record) {
        thread_local! {
            static LINE: RefCell<String> = const { RefCell::new(String::new()) };
        }
        if !self.admit(at, record.event()) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            line::append(line, at, record, self.options.format, self.options.addresses);
            self.push(line);
        });
    }

    /// Returns false when there have been too many lines of this event in this second.
    fn admit(&self, at: Timestamp, event: Event) -> bool {
        let mut buffer = self.buffer.lock();
        let limit = match event {
            Event::Rejected => &mut buffer.rejected,
            Event::LoginFailed => &mut buffer.logins,
            _ => return true,
        };
        let second = at.as_millis() / 1000;
        if limit.second != second {
            (limit.second, limit.lines) = (second, 0);
        }
        let admitted = limit.lines < self.options.limited_lines_per_sec;
        if admitted {
            limit.lines += 1;
        } else {
            limit.omitted += 1;
        }
        admitted
    }

    fn push(&self, line: &str) {
        let mut buffer = self.buffer.lock();
        if buffer.lines.len() + line.len() > self.options.buffer_bytes {
            buffer.lost += 1;
            return;
        }
        let was_empty = buffer.lines.is_empty();
        buffer.lines.extend_from_slice(line.as_bytes());
        buffer.count += 1;
        drop(buffer);
        if was_empty {
            self.wake.notify_one();
        }
    }
}

/// What the thread has.
struct Writer {
    shared: Arc<Shared>,
    file: Option<LogFile>,
    metrics: MailLogMetrics,
}

/// What the thread takes from the buffer.
struct Taken {
    lines: Vec<u8>,
    count: u64,
    reopen: bool,
    stop: bool,
}

impl Writer {
    fn run(mut self) {
        let (mut lines, mut reported_at) = (Vec::new(), postroad_env::now());
        loop {
            let taken = self.take(lines);
            self.metrics.lines.increment(taken.count);
            self.write(&taken);
            if taken.stop {
                self.report_missing();
                let rest = self.take(Vec::new());
                return self.write(&rest);
            }
            if postroad_env::since(reported_at) >= REPORT_EVERY {
                self.report_missing();
                reported_at = postroad_env::now();
            }
            lines = taken.lines;
            lines.clear();
        }
    }

    /// Waits until something has come, lets more gather, and takes it; `lines` is the empty buffer that takes its place.
    fn take(&self, lines: Vec<u8>) -> Taken {
        let Shared { buffer, wake, options, .. } = &*self.shared;
        let mut buffer = buffer.lock();
        if buffer.lines.is_empty() && !buffer.stop && !buffer.reopen {
            wake.wait_for(&mut buffer, options.look_every.min(REPORT_EVERY));
        }
        let gather_until = postroad_env::now() + GATHER;
        while !buffer.stop && buffer.lines.len() < options.buffer_bytes / 4 && !buffer.lines.is_empty() {
            if wake.wait_until(&mut buffer, gather_until).timed_out() {
                break;
            }
        }
        Taken {
            lines: std::mem::replace(&mut buffer.lines, lines),
            count: std::mem::take(&mut buffer.count),
            reopen: std::mem::take(&mut buffer.reopen),
            stop: buffer.stop,
        }
    }

    fn write(&mut self, taken: &Taken) {
        if let Some(file) = &mut self.file {
            let lost = file.write(&taken.lines, taken.reopen);
            self.shared.buffer.lock().lost += lost;
        }
        if self.shared.to_process_log.load(Ordering::Relaxed) {
            for piece in pieces(&taken.lines, PIECE_BYTES) {
                // A closed standard error has no reader.
                let _ = io::stderr().lock().write_all(piece);
            }
        }
    }

    /// Writes how many lines are missing, in the place where they are.
    fn report_missing(&self) {
        let (lost, rejected, logins) = {
            let mut buffer = self.shared.buffer.lock();
            let take = std::mem::take::<u64>;
            (take(&mut buffer.lost), take(&mut buffer.rejected.omitted), take(&mut buffer.logins.omitted))
        };
        self.metrics.lost.increment(lost);
        self.metrics.rejected.increment(rejected);
        self.metrics.logins.increment(logins);
        let omitted =
            |event: Event, lines| LeftOut { event: Event::Omitted, of: Some(event.as_str()), lines };
        let missing = [
            LeftOut { event: Event::Lost, of: None, lines: lost },
            omitted(Event::Rejected, rejected),
            omitted(Event::LoginFailed, logins),
        ];
        missing
            .iter()
            .filter(|record| record.lines > 0)
            .for_each(|record| self.shared.write(postroad_env::wall(), record));
    }
}

/// Cuts lines into pieces of whole lines; a line that is longer than a piece is one.
fn pieces(lines: &[u8], bytes: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_end = |byte: &u8| *byte == b'\n';
        let within = rest.len().min(bytes);
        let end = match rest[..within].iter().rposition(is_end) {
            _ if within == rest.len() => within,
            Some(place) => place + 1,
            None => rest.iter().position(is_end).map_or(rest.len(), |place| place + 1),
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// The file of the mail log: opened again when it was renamed or removed.
struct LogFile {
    path: PathBuf,
    file: Option<Appender<File>>,
    look_every: Duration,
    looked_at: Instant,
    /// For each [`Complaint`].
    complained_at: [Option<Instant>; 2],
}

impl LogFile {
    fn open(path: &Path, look_every: Duration) -> io::Result<Self> {
        let file = Some(append_to(path)?);
        Ok(Self {
            path: path.to_owned(),
            file,
            look_every,
            looked_at: postroad_env::now(),
            complained_at: [None; 2],
        })
    }

    /// Returns how many of the lines could not be written.
    fn write(&mut self, lines: &[u8], reopen: bool) -> u64 {
        if reopen || self.file.is_none() || postroad_env::since(self.looked_at) >= self.look_every {
            self.looked_at = postroad_env::now();
            if reopen {
                self.open_again("requested");
            } else if !self.is_current() {
                self.open_again("renamed or removed");
            }
        }
        let Some(file) = &mut self.file else { return count(lines) };
        let Err(Unwritten { lines, error }) = file.append(lines) else { return 0 };
        self.complain(&error, Complaint::Lost);
        lines
    }

    /// Keeps the file that is open where no other can be opened, unless it was removed, and its lines with it.
    fn open_again(&mut self, reason: &'static str) {
        match append_to(&self.path) {
            Ok(file) => {
                self.file = Some(file);
                tracing::info!(path = %self.path.display(), reason, "opened the mail log again");
            }
            Err(error) => {
                self.file = self.file.take().filter(|file| has_name(&file.to));
                let what = if self.file.is_some() { Complaint::NotReplaced } else { Complaint::Lost };
                self.complain(&error, what);
            }
        }
    }

    /// Returns true while the path leads to the file that is open.
    fn is_current(&self) -> bool {
        let identity = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let open = self.file.as_ref().and_then(|file| file.to.metadata().ok()).map(identity);
        let named = fs::metadata(&self.path).ok().map(identity);
        open.is_some() && open == named
    }

    fn complain(&mut self, error: &io::Error, what: Complaint) {
        let complained_at = &mut self.complained_at[what as usize];
        if complained_at.is_none_or(|at| postroad_env::since(at) >= COMPLAIN_EVERY) {
            *complained_at = Some(postroad_env::now());
            let what = what.as_str();
            let path = self.path.display();
            tracing::error!(%path, %error, "{what}");
        }
    }
}

/// Returns true unless the file was removed.
fn has_name(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

fn append_to(path: &Path) -> io::Result<Appender<File>> {
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    let file = match OpenOptions::new().create_new(true).append(true).open(path) {
        Ok(new) => {
            let _ = new.set_permissions(Permissions::from_mode(FILE_MODE));
            new
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // It keeps its mode, unless it is a link to a file that does not exist.
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            if is_new {
                let _ = file.set_permissions(Permissions::from_mode(FILE_MODE));
            }
            file
        }
        Err(error) => return Err(error),
    };
    Ok(Appender { is_within_line: ends_within_line(path, &file), to: file })
}

/// Makes a directory, and those above it, where there is none.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_directory)?;
    match fs::create_dir(path) {
        Ok(()) => {
            let _ = fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE));
            Ok(())
        }
        // Another process was faster.
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Returns true when a file ends with a part of a line, which a process that ended could not complete.
fn ends_within_line(path: &Path, file: &File) -> bool {
    // What is no file, such as a pipe, has no end to be read.
    let Some(end) = file.metadata().ok().filter(Metadata::is_file).and_then(|file| file.len().checked_sub(1))
    else {
        return false;
    };
    let mut last = [0];
    File::open(path).is_ok_and(|file| file.read_exact_at(&mut last, end).is_ok()) && last != *b"\n"
}

/// Appends lines. Behind a line that could not be written whole, the next one begins on a line of its own.
struct Appender<W> {
    to: W,
    /// The last byte that was written is not the end of a line.
    is_within_line: bool,
}

/// What an [`Appender`] could not write.
#[derive(Debug)]
struct Unwritten {
    /// How many lines, with the one that was cut.
    lines: u64,
    error: io::Error,
}

impl<W: io::Write> Appender<W> {
    fn append(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        let mut rest = lines;
        self.write_all(&mut rest).map_err(|error| Unwritten { lines: count(rest), error })
    }

    /// Takes from the front of `rest` what was written.
    fn write_all(&mut self, rest: &mut &[u8]) -> io::Result<()> {
        if self.is_within_line && !rest.is_empty() {
            self.to.write_all(b"\n")?;
            self.is_within_line = false;
        }
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.is_within_line = rest[written - 1] != b'\n';
                    *rest = &rest[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Counts lines by their ends.
fn count(lines: &[u8]) -> u64 {
    lines.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

#[cfg(test)]
mod tests {
    use postroad_core::MessageId;
    use postroad_settings::Source;

    use super::*;
    use crate::{
        TelemetryConfig,
        mail_log::{Delivery, LoginFailed, Mailbox, Said, Secs, Trace},
    };

    /// Never looks by itself.
    fn options(file: &Path) -> Options {
        Options {
            look_every: HOUR,
            format: LogFormat::Text,
            addresses: LogAddresses::None,
            file: Some(file.to_owned()),
            buffer_bytes: 1 << 20,
            limited_lines_per_sec: 2,
        }
    }

    fn held(recipient: u32) -> Delivery<'static> {
        Delivery {
            event: Event::Held,
            id: MessageId::from_u128(7),
            recipient,
            attempts: 0,
            to: Mailbox::None,
            tenant: "t",
            site: "b.test",
            outcome: None,
            reply: Said(""),
            delay: Secs(Duration::ZERO),
            trace: Trace(""),
        }
    }

    const HOUR: Duration = Duration::from_hours(1);
    const LOGIN: LoginFailed<'static> =
        LoginFailed { reason: "wrong", client: None, login: Mailbox::None, protocol: "smtp", helo: None };

    fn stop(log: &MailLog) {
        log.stop();
        wait_until(|| log.has_stopped());
    }

    #[track_caller]
    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = postroad_env::now() + Duration::from_secs(60);
        while !condition() {
            assert!(postroad_env::now() < deadline, "waited in vain");
            postroad_env::pause(Duration::from_millis(2));
        }
    }

    /// Returns the lines of a file without their times.
    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once("mail: ")).map(|(_, rest)| rest.to_owned()).collect()
    }

    /// Renames the file twice; without a `request`, the writer has to find it out.
    #[track_caller]
    fn check_rotation(look_every: Duration, request: impl Fn(&Shared)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mail.log");
        let log = MailLog::start(Options { look_every, ..options(&path) }, false).unwrap();
        let names = ["mail.log.1", "mail.log.2", "mail.log"];
        for (recipient, name) in (0..).zip(names) {
            log.shared.write(postroad_env::wall(), &held(recipient));
            wait_until(|| lines(&path).len() == 1);
            if name != "mail.log" {
                std::fs::rename(&path, dir.path().join(name)).unwrap();
                request(&log.shared);
                wait_until(|| path.exists());
            }
        }
        stop(&log);
        for (recipient, name) in names.iter().enumerate() {
            let lines = lines(&dir.path().join(name));
            let start = format!("held id=00000000000000000000000007 recipient={recipient} ");
            assert!(lines.len() == 1 && lines[0].starts_with(&start), "{name}: {lines:?}");
        }
    }

    #[test]
    fn a_file_that_was_renamed_is_opened_again_and_nothing_is_lost() {
        check_rotation(Duration::from_millis(10), |_| {});
    }

    #[test]
    fn a_file_is_opened_again_at_once_on_request() {
        check_rotation(HOUR, Shared::reopen);
    }

    #[test]
    fn lines_that_find_no_room_are_counted_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mail.log");
        let log = MailLog::start(options(&path), false).unwrap();
        log.shared.buffer.lock().lost = 41;
        stop(&log);
        assert_eq!(lines(&path), ["lost of=- lines=41"]);
        let small = Shared {
            options: Options { buffer_bytes: 10, ..options(&path) },
            to_process_log: AtomicBool::new(false),
            buffer: Mutex::default(),
            wake: Condvar::new(),
        };
        small.write(postroad_env::wall(), &held(1));
        let buffer = small.buffer.lock();
        assert_eq!((buffer.lost, buffer.lines.len()), (1, 0));
    }

    #[test]
    fn b_17_a_flood_of_refusals_leaves_some_lines_and_their_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mail.log");
        let log = MailLog::start(options(&path), false).unwrap();
        let at = Timestamp::from_millis(951_782_400_000);
        (0..100).for_each(|_| log.shared.write(at, &LOGIN));
        // What mail itself does is never left out.
        (0..5).for_each(|number| log.shared.write(at, &held(number)));
        log.shared.write(at.after(Duration::from_secs(1)), &LOGIN);
        stop(&log);
        let lines = lines(&path);
        let of = |event: &str| lines.iter().filter(|line| line.starts_with(event)).count();
        assert_eq!((of("login_failed "), of("held ")), (3, 5));
        let omitted = lines.iter().filter_map(|line| line.strip_prefix("omitted of=login_failed lines="));
        assert_eq!(omitted.map(|lines| lines.parse::<u32>().unwrap()).sum::<u32>(), 98);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_at_the_start_and_is_tried_again_later() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        let path = below.join("mail.log");
        std::fs::write(&below, "no directory").unwrap();
        assert!(MailLog::start(options(&path), false).is_err());
        std::fs::remove_file(&below).unwrap();
        let mut file = LogFile::open(&path, HOUR).unwrap();
        std::fs::remove_dir_all(&below).unwrap();
        std::fs::write(&below, "no directory").unwrap();
        assert_eq!(file.write(b"one\n", true), 1);
        std::fs::remove_file(&below).unwrap();
        assert_eq!(file.write(b"two\n", false), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, renamed) = (dir.path().join("mail.log"), dir.path().join("mail.log.1"));
        let mut file = LogFile::open(&path, HOUR).unwrap();
        assert_eq!(file.write(b"one\n", false), 0);
        std::fs::rename(&path, &renamed).unwrap();
        // In place of a directory where the user may make no files, which the superuser may everywhere.
        std::fs::create_dir(&path).unwrap();
        assert_eq!(file.write(b"two\n", true), 0);
        assert_eq!(std::fs::read_to_string(&renamed).unwrap(), "one\ntwo\n");
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(file.write(b"three\n", true), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_path_that_config_check_accepts_can_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("node.toml");
        std::fs::write(&config, "mail_log = \"new/directory/mail.log\"\n").unwrap();
        let source = Source::new(&config).with_variables(Vec::new()).opening_files();
        let (config, problems) = source.read::<TelemetryConfig>();
        problems.finish().unwrap();
        let log = MailLog::start(options(config.mail_log.unwrap().as_ref()), false).unwrap();
        log.shared.write(postroad_env::wall(), &held(0));
        stop(&log);
        assert_eq!(lines(&dir.path().join("new/directory/mail.log")).len(), 1);
    }

    /// A disk that has room for so many more bytes, and takes three at a time.
    struct Disk {
        content: Vec<u8>,
        room: usize,
    }

    impl io::Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room).min(3);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.content.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_a_full_disk_cut_is_lost_and_spoils_no_other() {
        let check = |room: usize, lost: u64, content: &str| {
            let mut file = Appender { to: Disk { content: Vec::new(), room }, is_within_line: false };
            let unwritten = file.append(b"first\nsecond\nthird\n").err();
            assert_eq!(unwritten.map_or(0, |unwritten| unwritten.lines), lost, "{room}");
            file.to.room = 1000;
            file.append(b"").unwrap();
            file.append(b"fourth\n").unwrap();
            assert_eq!(String::from_utf8_lossy(&file.to.content), content, "{room}");
        };
        check(1000, 0, "first\nsecond\nthird\nfourth\n");
        check(0, 3, "fourth\n");
        check(4, 3, "firs\nfourth\n");
        check(5, 3, "first\nfourth\n");
        check(6, 2, "first\nfourth\n");
        check(9, 2, "first\nsec\nfourth\n");
        check(18, 1, "first\nsecond\nthird\nfourth\n");
    }

    #[test]
    fn a_file_that_ends_within_a_line_is_continued_on_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mail.log");
        std::fs::write(&path, "first\nsec").unwrap();
        assert_eq!(LogFile::open(&path, HOUR).unwrap().write(b"third\n", false), 0);
        assert_eq!(LogFile::open(&path, HOUR).unwrap().write(b"fourth\n", false), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "first\nsec\nthird\nfourth\n");
    }

    #[test]
    fn pieces_are_whole_lines() {
        let check = |lines: &str, bytes: usize, expected: &[&str]| {
            let cut: Vec<&[u8]> = pieces(lines.as_bytes(), bytes).collect();
            assert_eq!(cut, expected.iter().map(|piece| piece.as_bytes()).collect::<Vec<_>>());
        };
        check("", 4, &[]);
        check("a\nb\n", 4, &["a\nb\n"]);
        check("a\nb\nc\n", 4, &["a\nb\n", "c\n"]);
        check("long line\nb\n", 4, &["long line\n", "b\n"]);
    }
}
