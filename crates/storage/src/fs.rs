//! The file system interface of the log, which tests replace to inject faults.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

/// A directory and the files in it. Names are without a path.
pub trait Fs: Send + Sync {
    /// Creates the directory and locks it for this process.
    ///
    /// # Errors
    /// It cannot be created, or another process uses it.
    fn lock(&self) -> io::Result<()>;
    /// Returns the names of all files.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file that exists.
    ///
    /// # Errors
    /// It does not exist or cannot be opened.
    fn open(&self, name: &str) -> io::Result<Arc<dyn Store>>;
    /// Creates an empty file and opens it.
    ///
    /// # Errors
    /// It cannot be created.
    fn create(&self, name: &str) -> io::Result<Arc<dyn Store>>;
    /// Renames a file over another; durable after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// It cannot be renamed.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; durable after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// It cannot be removed.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names of files durable.
    ///
    /// # Errors
    /// The disk failed.
    fn sync_dir(&self) -> io::Result<()>;
    /// Aborts the process: after a failed write or sync the contents of the disk are unknown. A test's file system returns.
    fn fatal(&self, error: &io::Error) {
        tracing::error!(%error, "the disk failed: aborting the process");
        std::process::abort();
    }
}

/// An open file.
pub trait Store: Send + Sync {
    /// Writes all of `bytes`; address, length and offset are multiples of [`crate::log::BLOCK`].
    ///
    /// # Errors
    /// Some bytes may not have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `bytes`.
    ///
    /// # Errors
    /// The file ends before, or the disk failed.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes what has been written durable.
    ///
    /// # Errors
    /// The disk failed: its contents are unknown.
    fn sync(&self) -> io::Result<()>;
    /// Allocates `bytes` for the file, so that writing needs no more space.
    ///
    /// # Errors
    /// The disk is full.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Returns the length in bytes.
    ///
    /// # Errors
    /// The file's metadata cannot be read.
    fn bytes(&self) -> io::Result<u64>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealFs {
    dir: PathBuf,
    lock: Mutex<Option<File>>,
}

impl RealFs {
    /// Uses `dir`, which is created when it is locked.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), lock: Mutex::new(None) }
    }

    fn store(&self, name: &str, options: &mut OpenOptions) -> io::Result<RealStore> {
        let path = self.dir.join(name);
        let reader = options.read(true).write(true).open(&path)?;
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(&path)
            // A file system without direct I/O: writes go through the page cache, and are synced as well.
            .ok();
        Ok(RealStore { reader, direct })
    }
}

impl Fs for RealFs {
    fn lock(&self) -> io::Result<()> {
        let mut lock = self.lock.lock();
        if lock.is_some() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.dir.join("lock"))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "another process uses the directory"))?;
        *lock = Some(file);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        Ok(Arc::new(self.store(name, &mut OpenOptions::new())?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn Store>> {
        Ok(Arc::new(self.store(name, OpenOptions::new().create(true).truncate(true))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

#[derive(Debug)]
struct RealStore {
    reader: File,
    /// Opened for direct I/O, where that is possible.
    direct: Option<File>,
}

impl Store for RealStore {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.direct.as_ref().map(|direct| direct.write_all_at(bytes, offset)) {
            // EINVAL: the file system accepts O_DIRECT at open and refuses it at write.
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                self.reader.write_all_at(bytes, offset)
            }
            Some(result) => result,
            None => self.reader.write_all_at(bytes, offset),
        }
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.reader.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.reader.sync_data()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        rustix::fs::fallocate(&self.reader, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.reader.metadata()?.len())
    }
}
