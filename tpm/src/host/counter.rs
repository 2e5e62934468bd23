//! The rollback counter, by the owner: made once, and counted up.

use tss_esapi::{
    attributes::NvIndexAttributes,
    handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::{NvAuth, Provision},
    },
    structures::NvPublicBuilder,
};

use super::{Host, HostError};
use crate::rollback::{ATTRIBUTES, SIZE, WRITTEN, is_uncounted};

const DEFINE: &str = "TPM2_NV_DefineSpace";
const INCREMENT: &str = "TPM2_NV_Increment";

impl Host {
    /// Makes the counter where there is none, and counts it up for the first time: until then it has no value. Whatever is
    /// at the index already is left alone: what it is shows when it is read.
    ///
    /// Those are two commands. A power cut between them leaves a counter without a value, to which this gives one.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn provide_counter(&mut self, index: u32) -> Result<(), HostError> {
        let handle = NvIndexTpmHandle::new(index).map_err(|source| HostError::command(DEFINE, source))?;
        if !self.exists(TpmHandle::from(handle))? {
            self.define(handle)?;
        }
        let opened = self.open_index(handle)?;
        let (public, _) = self.plain("TPM2_NV_ReadPublic", |context| context.nv_read_public(opened))?;
        let attributes = u32::try_from(public.attributes()).map_err(|source| HostError::command(DEFINE, source))?;
        if is_uncounted(attributes) {
            self.increment(opened)?;
        }
        Ok(())
    }

    /// Counts up by one. That is one command, after which the TPM holds the new value or the old one.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn count_up(&mut self, index: u32) -> Result<(), HostError> {
        let handle = NvIndexTpmHandle::new(index).map_err(|source| HostError::command(INCREMENT, source))?;
        let opened = self.open_index(handle)?;
        self.increment(opened)
    }

    fn define(&mut self, handle: NvIndexTpmHandle) -> Result<(), HostError> {
        let failed = |source| HostError::command(DEFINE, source);
        // No attribute to define an index with.
        let attributes = NvIndexAttributes::try_from(ATTRIBUTES & !WRITTEN).map_err(failed)?;
        let area = NvPublicBuilder::new()
            .with_nv_index(handle)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(SIZE.into())
            .build()
            .map_err(failed)?;
        self.password(DEFINE, |context| context.nv_define_space(Provision::Owner, None, area).map(drop))
    }

    fn open_index(&mut self, handle: NvIndexTpmHandle) -> Result<NvIndexHandle, HostError> {
        let opened = self.plain("TPM2_NV_ReadPublic", |context| context.tr_from_tpm_public(TpmHandle::from(handle)))?;
        Ok(NvIndexHandle::from(opened))
    }

    fn increment(&mut self, index: NvIndexHandle) -> Result<(), HostError> {
        self.password(INCREMENT, |context| context.nv_increment(NvAuth::Owner, index))
    }
}
