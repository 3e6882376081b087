//! Reading and writing of types that are one of several streams.

/// Implements [`AsyncRead`](tokio::io::AsyncRead) and [`AsyncWrite`](tokio::io::AsyncWrite) for a type, by a macro that
/// evaluates an expression with its current stream, and a function that says whether that stream writes several slices at once.
macro_rules! forward_io {
    ($type:ty, $each:ident, $is_write_vectored:expr) => {
        impl tokio::io::AsyncRead for $type {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $each!(self, stream => std::pin::Pin::new(stream).poll_read(context, buffer))
            }
        }

        impl tokio::io::AsyncWrite for $type {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                $each!(self, stream => std::pin::Pin::new(stream).poll_write(context, bytes))
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
                parts: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                $each!(self, stream => std::pin::Pin::new(stream).poll_write_vectored(context, parts))
            }

            fn is_write_vectored(&self) -> bool {
                let is_write_vectored: fn(&Self) -> bool = $is_write_vectored;
                is_write_vectored(self)
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $each!(self, stream => std::pin::Pin::new(stream).poll_flush(context))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                $each!(self, stream => std::pin::Pin::new(stream).poll_shutdown(context))
            }
        }
    };
}

pub(crate) use forward_io;
