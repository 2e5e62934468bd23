//! NV indices: data and counters in the TPM's own memory (Part 1, section 37).

use zeroize::Zeroizing;

pub use crate::name::NvPublic;
use crate::{
    client::{CommandError, malformed},
    command::{Command, CommandCode},
    protected::{Protected, sized_secret},
    reader::Reader,
    response::ResponseError,
    session::{Protection, ended},
    transport::Transport,
};

/// How much is read at once, in bytes. The PC Client Platform TPM Profile demands 512 of `TPM_PT_NV_BUFFER_MAX` at least.
const CHUNK: u16 = 512;

impl<T: Transport> Protected<'_, T> {
    /// The public area of an index (TPM2_NV_ReadPublic, Part 3, section 31.6).
    ///
    /// # Errors
    /// See [`CommandError`]. [`ResponseCode::Handle`](crate::response::ResponseCode::Handle) where there is none.
    pub fn nv_public(&mut self, index: u32) -> Result<NvPublic, CommandError> {
        let code = CommandCode::NvReadPublic;
        let area = |parameters: &[u8]| nv_public_area(parameters, index).map_err(|source| malformed(code, source));
        // A session covers the index's Name, which is not known yet: it is asked for once without, and again by that Name.
        let claimed = area(&self.unprotected().run(&Command::new(code).handle(index))?)?;
        area(&self.audited(&Command::new(code).named(index, &claimed.name()))?)
    }

    /// What an index holds (TPM2_NV_Read, Part 3, section 31.13), authorized by its own value, and encrypted on its way.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn nv_read(&mut self, public: &NvPublic, auth_value: &[u8]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let mut data = Zeroizing::new(Vec::with_capacity(public.size().into()));
        let mut offset = 0;
        while offset < public.size() {
            let size = CHUNK.min(public.size() - offset);
            data.extend_from_slice(&self.nv_read_some(public, auth_value, offset, size)?);
            offset += size;
        }
        Ok(data)
    }

    fn nv_read_some(
        &mut self,
        public: &NvPublic,
        auth_value: &[u8],
        offset: u16,
        size: u16,
    ) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let code = CommandCode::NvRead;
        let command = on_itself(code, public).u16(size).u16(offset);
        let answer = self.execute(&command, auth_value, Protection::HiddenResponse)?;
        let data = sized_secret(&answer.parameters, "data").map_err(|source| malformed(code, source))?;
        if data.len() != usize::from(size) {
            let found = data.len() as u32;
            return Err(malformed(
                code,
                ResponseError::Value { field: "data", expected: "as many bytes as asked for", found },
            ));
        }
        Ok(data)
    }

    /// Counts an index up by one (TPM2_NV_Increment, Part 3, section 31.8), authorized by its own value.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn nv_increment(&mut self, public: &NvPublic, auth_value: &[u8]) -> Result<(), CommandError> {
        let command = on_itself(CommandCode::NvIncrement, public);
        let answer = self.execute(&command, auth_value, Protection::Integrity)?;
        ended(command.code(), &answer.parameters)
    }
}

/// A command on an index that authorizes itself: `authHandle` and `nvIndex`.
fn on_itself(code: CommandCode, public: &NvPublic) -> Command {
    Command::new(code).named(public.index(), &public.name()).named(public.index(), &public.name())
}

/// `nvPublic` and the Name that says the same.
pub(crate) fn nv_public_area(parameters: &[u8], index: u32) -> Result<NvPublic, ResponseError> {
    let mut reader = Reader::new(parameters);
    let public = NvPublic::parse(reader.sized("nvPublic")?)?;
    let name = reader.sized("nvName")?;
    reader.end("TPM2_NV_ReadPublic's parameters")?;
    if public.index() != index {
        return Err(ResponseError::Value { field: "nvIndex", expected: "the one asked for", found: public.index() });
    }
    if name != public.name().as_bytes() {
        let found = name.len() as u32;
        return Err(ResponseError::Value { field: "nvName", expected: "SHA-256 of nvPublic", found });
    }
    Ok(public)
}
